"""What the components of a module weigh and how they are shaped, read off headers alone."""

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.roles import Role, role_of
from fastvideo_lightning.offload.blocks import find_block_lists
from fastvideo_lightning.offload.tensors.bindings import (
    TensorBinding,
    find_bindings,
    split_buffers,
    split_by_owner,
)
from fastvideo_lightning.offload.tensors.embeddings import is_table
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.tensors.leaves import find_leaves, is_plain
from fastvideo_lightning.offload.tensors.sources import find_source, source_spec

_OF_TEXT = re.compile(r"\.attn2\.(to|add)_[kv](_proj)?\.weight$")


def dtype_of(module: VideoModule, fqn: str) -> torch.dtype | None:
    """The dtype of a component's first floating-point weight on a GPU; None without one."""
    for name, weight in module.get_submodule(fqn).named_parameters(prefix=fqn):
        source = module.weight_sources.get(name)
        dtype = weight.dtype if source is None else source.accelerator_dtype
        if dtype.is_floating_point:
            return dtype
    return None


def count_weights(module: VideoModule, size: "ComponentSize") -> tuple[int, int]:
    """Weights of the blocks that meet every token, and those that meet the text alone.

    The latter make keys and values of the text for cross-attention.
    """
    component = module.get_submodule(size.fqn)
    of_text = sum(
        weight.numel() for name, weight in component.named_parameters() if _OF_TEXT.search(name)
    )
    whole = sum(block.num_weights for block in size.blocks) or size.whole.num_weights
    return whole - of_text, of_text


def widths(config: Any, size: "ComponentSize") -> tuple[int, int]:
    """Width of a denoiser's tokens and of its feed-forward layer, in elements."""
    heads = getattr(config, "num_attention_heads", None)
    head_width = getattr(config, "attention_head_dim", None)
    width = None
    if isinstance(heads, int) and isinstance(head_width, int):
        width = heads * head_width
    if width is None and size.blocks:
        # A block is about 12 square matrices of its width.
        width = round((max(block.size_bytes for block in size.blocks) / 2 / 12) ** 0.5)
    width = width or 2048
    return width, int(getattr(config, "ffn_dim", None) or 4 * width)


def latent_shape(module: VideoModule, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames, rows and columns of a video's latent."""
    pipeline = module.pipeline
    space = int(getattr(pipeline, "vae_scale_factor_spatial", None) or 8)
    return latent_frames(module, frames), height // space, width // space


def latent_frames(module: VideoModule, frames: int) -> int:
    """Frames of a video's latent."""
    return (frames - 1) // frames_per_latent(module) + 1


def frames_per_latent(module: VideoModule) -> int:
    """Frames that a latent frame stands for, but for the first, which is one."""
    return int(getattr(module.pipeline, "vae_scale_factor_temporal", None) or 4)


def count_tokens(latent: tuple[int, int, int], config: Any) -> int:
    """The patches of a latent."""
    patch = patch_of(config)
    return -(-latent[0] // patch[0]) * (latent[1] // patch[1]) * (latent[2] // patch[2])


def patch_of(config: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns that make one token; 1 each where nothing is said."""
    size = getattr(config, "patch_size", None) or 1
    in_time = getattr(config, "patch_size_t", None) or 1
    if isinstance(size, int):
        return int(in_time), size, size
    size = tuple(size)
    return size if len(size) == 3 else (int(in_time), *size[-2:])


def config_of(module: VideoModule, size: "ComponentSize") -> Any:
    """A component's configuration; None for one without."""
    return getattr(module.get_submodule(size.fqn), "config", None)


def arguments_of(component: Any, kind: type) -> dict[str, Any]:
    """What a component of diffusers is made of, as one of that class.

    A published configuration may hold more than the class asks for, such as `clip_output`.
    """
    asked_for = inspect.signature(kind).parameters
    return {name: value for name, value in component.config.items() if name in asked_for}


MIB = 1 << 20
_GPU = torch.device("cuda")

LOSSLESS_SHARE = 0.70
"""Of bf16 weights, the bytes that they travel in; a row of "Constants" in `docs/planning.md`."""


@dataclass(frozen=True)
class PartSize:
    """Bytes of tensors that are placed together.

    Attributes:
        size_bytes: Of the tensors, one behind the other, as in a slot.
        kept_bytes: What the device allocator reserves for them as tensors of their own.
        num_weights: How many numbers they hold, however many bits each has.
        held_bytes: Of the tensors, what no file has as it runs: it cannot be read on its way.
        coded_bytes: Of the tensors, what can travel in fewer bytes.
    """

    size_bytes: int = 0
    kept_bytes: int = 0
    num_weights: int = 0
    held_bytes: int = 0
    coded_bytes: int = 0

    def travelling_bytes(self, weight_compression: str) -> int:
        """What waits on the host and is copied, as `OffloadConfig` has it compressed."""
        if weight_compression == "none" or 2 * self.held_bytes > self.size_bytes:
            return self.size_bytes
        return self.size_bytes - round((1 - LOSSLESS_SHARE) * self.coded_bytes)

    def __add__(self, other: "PartSize") -> "PartSize":
        return PartSize(
            self.size_bytes + other.size_bytes,
            self.kept_bytes + other.kept_bytes,
            self.num_weights + other.num_weights,
            self.held_bytes + other.held_bytes,
            self.coded_bytes + other.coded_bytes,
        )


@dataclass(frozen=True)
class ComponentSize:
    """What one component weighs in the dtypes that it runs in on a GPU.

    Attributes:
        fqn: Its name.
        role: The part it plays; None for one that shows none.
        blocks: Its blocks in order; none where it has no list of them.
        between: What lies between the blocks, or everything where there are none.
        whole: All of it.
        tables: Embedding tables, which are part of `between` too.
        is_quantized: Whether weights have fewer bits than they compute with.
    """

    fqn: str
    role: Role | None
    blocks: tuple[PartSize, ...]
    between: PartSize
    whole: PartSize
    tables: tuple[PartSize, ...] = ()
    is_quantized: bool = False


def measure_components(
    module: VideoModule, *, quantization: str | None = None
) -> tuple[ComponentSize, ...]:
    """Weigh every component of a module, which may be on meta.

    Args:
        module: The model.
        quantization: Weigh its denoisers as if they were loaded as `fp8` or `int8`.
    """
    return tuple(
        _measure(module, name, type(component), quantization)
        for name, component in module.named_children()
    )


def _measure(
    root: VideoModule, name: str, component_class: type, quantization: str | None
) -> ComponentSize:
    component = root.get_submodule(name)
    if role_of(component_class) is not Role.DENOISER:
        quantization = None
    part = partial(_part, root, quantization)
    blocks = [block for found in find_block_lists(component) for _, block in found.blocks]
    bindings = find_bindings(component, name)
    inside, between = split_by_owner(bindings, blocks)
    split = [split_buffers(block) for block in inside]
    between += [binding for _, buffers in split for binding in buffers]
    tables = filter(is_table, between)
    return ComponentSize(
        name,
        role_of(component_class),
        tuple(part(moving) for moving, _ in split),
        part(between),
        part(bindings),
        tuple(part([table]) for table in tables),
        quantization is not None or not all(is_plain(binding.tensor) for binding in bindings),
    )


def _part(
    root: VideoModule, quantization: str | None, bindings: Sequence[TensorBinding]
) -> PartSize:
    specs = [spec for binding in bindings for spec in _specs(root, binding)]
    if quantization is not None:
        specs = [
            narrow
            for binding in bindings
            for spec in _specs(root, binding)
            for narrow in _narrow(binding, spec, quantization)
        ]
    sizes = [spec.size_bytes for spec in specs]
    num_weights = sum(binding.tensor.numel() for binding in bindings)
    held = sum(sizes) if quantization else sum(_held(root, binding) for binding in bindings)
    coded = 0 if quantization else sum(_coded(root, binding) for binding in bindings)
    return PartSize(SlabLayout(specs).size_bytes, reserved_bytes(sizes), num_weights, held, coded)


def _coded(root: VideoModule, binding: TensorBinding) -> int:
    """Bytes of a tensor that lies in its file in bf16 and runs so."""
    return sum(
        spec.size_bytes
        for spec in _specs(root, binding)
        if spec.dtype is torch.bfloat16 and not _held(root, binding)
    )


def _held(root: VideoModule, binding: TensorBinding) -> int:
    """Bytes of a tensor that no file has in the dtype that it runs in."""
    if any(name in root.weight_sources for name in binding.names):
        source = find_source(binding, root.weight_sources)
        dtype = source.dtype_on(_GPU)
        is_plain_file = source.path is not None and source.stored_dtype == dtype
        return 0 if is_plain_file else source.shape.numel() * dtype.itemsize
    return sum(leaf.nbytes for leaf in find_leaves(binding.tensor, binding.fqn))


def _specs(root: VideoModule, binding: TensorBinding) -> list[TensorSpec]:
    if any(name in root.weight_sources for name in binding.names):
        return [source_spec(find_source(binding, root.weight_sources), _GPU)]
    return [TensorSpec.of(leaf) for leaf in find_leaves(binding.tensor, binding.fqn)]


def _narrow(binding: TensorBinding, spec: TensorSpec, quantization: str) -> list[TensorSpec]:
    """A linear layer's weight as torchao keeps it, row by row; other tensors as they are."""
    registration = binding.registrations[0]
    is_linear = type(registration.owner) is torch.nn.Linear and registration.name == "weight"
    if not is_linear or spec.dtype is torch.float32:  # what a library keeps so
        return [spec]
    rows = spec.shape[:1]
    of_rows = {"fp8": (torch.float32,), "int8": (torch.float32, torch.int8)}[quantization]
    return [
        TensorSpec.contiguous(spec.shape, torch.int8),
        *(TensorSpec.contiguous(rows, dtype) for dtype in of_rows),
    ]


def reserved_bytes(sizes: Iterable[int]) -> int:
    """What torch's caching allocator reserves for tensors of these sizes, an upper bound.

    Up to 1 MiB they share segments of 2 MiB, up to 10 MiB segments of 20 MiB, and beyond that each
    has its own, a multiple of 2 MiB (constants of `c10/cuda/CUDACachingAllocator`).
    """
    total, small, middle = 0, 0, 0
    for size in sizes:
        if size <= MIB:
            small += -(-size // 512) * 512
        elif size < 10 * MIB:
            middle += size
        else:
            total += -(-size // (2 * MIB)) * 2 * MIB
    return total + round(small * 1.05) + round(middle * 1.1)
