"""Small models with what makes streaming hard: buffers, mixed dtypes, uneven blocks."""

import torch
from safetensors.torch import save_file
from torch import nn

from fastvideo_lightning.checkpoint.weights import StoredWeight, read_header


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Parameter(torch.randn(width, dtype=torch.float64))
        self.register_buffer("table", torch.randn(width), persistent=False)
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("the block failed")
        hidden = torch.tanh(self.up(self.norm(x) * self.table))
        return x + self.down(hidden) * self.gate.float()


class Toy(nn.Module):
    """A model whose blocks are the field ``blocks``; ``order`` says which are called, and when."""

    def __init__(self, width: int = 16, num_blocks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, width + 8 * i) for i in range(num_blocks))
        self.head = nn.Linear(width, width)
        self.order = list(range(num_blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for i in self.order:
            x = self.blocks[i](x)
        return self.head(x)


def make_toy(num_blocks: int = 4, *, seed: int = 0, width: int = 16) -> Toy:
    torch.manual_seed(seed)
    return Toy(width, num_blocks).eval().requires_grad_(False)


def sample(width: int = 16) -> torch.Tensor:
    return torch.randn(2, width, generator=torch.Generator().manual_seed(7))


class TensorSource:
    """A weight source over a tensor in memory, in place of one in a file."""

    path = None
    offset = 0

    def __init__(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        self.tensor = tensor
        self.shape = tensor.shape
        self.stored_dtype = tensor.dtype
        self.dtype = dtype or tensor.dtype
        self.reads = 0

    def dtype_on(self, device: torch.device) -> torch.dtype:
        return self.dtype

    def read_into(self, out: torch.Tensor) -> None:
        self.reads += 1
        out.copy_(self.tensor)


def put_on_meta(model: nn.Module) -> None:
    """Move a model's parameters to meta and their bytes behind ``weight_sources``."""
    model.weight_sources = {}
    for name, parameter in list(model.named_parameters()):
        model.weight_sources[name] = TensorSource(parameter.detach().clone())
        owner, _, leaf = name.rpartition(".")
        on_meta = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        model.get_submodule(owner)._parameters[leaf] = on_meta


class OnMeta(Toy):
    """The same model as ``like``, on meta, with its bytes behind ``weight_sources``."""

    def __init__(self, like: Toy) -> None:
        super().__init__(like.embed.in_features, len(like.blocks))
        self.load_state_dict(like.state_dict(), strict=False)
        for block, other in zip(self.blocks, like.blocks, strict=True):
            block.table = other.table.clone()
        put_on_meta(self)


class OnFile(Toy):
    """A toy whose parameters lie in a safetensors file, some of them in another dtype."""

    def __init__(self, like: Toy, path, *, cast=()) -> None:
        super().__init__(like.embed.in_features, len(like.blocks))
        self.load_state_dict(like.state_dict(), strict=False)
        for block, other in zip(self.blocks, like.blocks, strict=True):
            block.table = other.table.clone()
        put_on_file(self, like, path, cast=cast)


def put_on_file(model: nn.Module, like: nn.Module, path, *, cast=()) -> None:
    """Write the weights of ``like`` to a file, those of ``cast`` in fp64; ``model`` is on meta."""
    save_file({k: v.double() if k in cast else v for k, v in like.state_dict().items()}, path)
    model.weight_sources = {}
    for name, tensor in read_header(path).items():
        owner, _, leaf = name.rpartition(".")
        run_dtype = like.get_parameter(name).dtype
        model.weight_sources[name] = StoredWeight(tensor, run_dtype, run_dtype)
        on_meta = nn.Parameter(torch.empty(tensor.shape, dtype=run_dtype, device="meta"))
        model.get_submodule(owner)._parameters[leaf] = on_meta.requires_grad_(False)


class WideBlock(nn.Module):
    """A block of bf16 matrices large enough to be coded, with a norm in fp32 between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, dtype=torch.bfloat16)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, width, bias=False, dtype=torch.bfloat16)
        self.shift = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(torch.tanh(self.up(x)).float()).bfloat16()
        return x + self.down(hidden) * self.shift.sum()


class WideToy(nn.Module):
    """Blocks of bf16, as denoisers have them."""

    def __init__(self, num_blocks: int = 4, width: int = 512) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(WideBlock(width, 2 * width) for _ in range(num_blocks))
        self.order = list(range(num_blocks))
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in self.order:
            x = self.blocks[i](x)
        return x
