import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.tensors.leaves import find_leaves, rebuild


class Scaled(torch.Tensor):
    """An int8 matrix times a scale per row, as quantized weights are kept."""

    def __new__(cls, values: torch.Tensor, scale: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        self.values = values
        self.scale = scale

    def __tensor_flatten__(self):
        return ["values", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Scaled(inner["values"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function is torch.ops.aten.detach.default
        return Scaled(args[0].values, args[0].scale)


class Quantized(nn.Module):
    """A block whose weight is a tensor of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        values = torch.randint(-9, 9, (16, 16), dtype=torch.int8)
        self.weight = nn.Parameter(Scaled(values, torch.rand(16, 1)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.values * self.weight.scale)


class Opaque(torch.Tensor):
    """A subclass that does not tell what it is made of."""


def make_chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Quantized() for _ in range(4)))


def test_a_wrapper_subclass_streams_by_its_inner_tensors():
    chain, plain = make_chain(), make_chain()
    callback = LayerwiseOffload("")
    callback.attach(chain, "cpu")
    before = [block.weight for block in chain]
    x = torch.randn(2, 16)
    for _ in range(2):
        assert torch.equal(chain(x), plain(x))
    (unit, *_) = callback.attachments[0].engine.units
    assert unit.size_bytes == 512 + 16 * 4
    callback.detach()
    assert all(block.weight is weight for block, weight in zip(chain, before, strict=True))
    assert torch.equal(chain(x), plain(x))


def test_an_edit_of_an_inner_tensor_is_not_lost():
    chain, plain = make_chain(), make_chain()
    LayerwiseOffload("").attach(chain, "cpu")
    x = torch.randn(2, 16)
    chain(x)
    for model in (chain, plain):
        model[1].weight.values.add_(1)
        model[2].weight.scale.data = torch.ones(16, 1)
    assert torch.equal(chain(x), plain(x))


def test_a_rebuilt_parameter_is_one_and_keeps_its_gradient_flag():
    for requires_grad in (False, True):
        like = nn.Parameter(torch.ones(3), requires_grad=requires_grad)
        built = rebuild(like, find_leaves(torch.zeros(3), "x"))
        assert isinstance(built, nn.Parameter)
        assert built.requires_grad is requires_grad


def test_a_subclass_that_cannot_be_taken_apart_is_refused_by_name():
    block = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    block[1].weight = nn.Parameter(torch.zeros(2, 2).as_subclass(Opaque), requires_grad=False)
    with pytest.raises(TypeError, match=r"blocks\.1\.weight is a Opaque.*CPUExecution"):
        LayerwiseOffload("blocks").attach(nn.ModuleDict({"blocks": block}), "cpu")
