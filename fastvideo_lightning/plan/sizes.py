"""What the components of a module weigh on a device, read off headers: no weight is touched."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

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

MIB = 1 << 20
_GPU = torch.device("cuda")


@dataclass(frozen=True)
class PartSize:
    """Bytes of tensors that are placed together.

    Attributes:
        size_bytes: Of the tensors, one behind the other, as in a slot.
        kept_bytes: What the device allocator reserves for them as tensors of their own.
        num_weights: How many numbers they hold, however many bits each has.
        held_bytes: Of the tensors, what no file has as it runs: it cannot be read on its way.
    """

    size_bytes: int = 0
    kept_bytes: int = 0
    num_weights: int = 0
    held_bytes: int = 0

    def __add__(self, other: "PartSize") -> "PartSize":
        return PartSize(
            self.size_bytes + other.size_bytes,
            self.kept_bytes + other.kept_bytes,
            self.num_weights + other.num_weights,
            self.held_bytes + other.held_bytes,
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
    return PartSize(SlabLayout(specs).size_bytes, reserved_bytes(sizes), num_weights, held)


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
    place = binding.places[0]
    is_linear = type(place.owner) is torch.nn.Linear and place.name == "weight"
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
