"""Where each tensor of a packed component lies: files planned to the byte before one is written.

Note [Packed files]
A unit (a block of the model) is what streaming copies as one, into a slot where its tensors lie as
`SlabLayout` says. In a packed file they lie at the same distances, behind a begin that is on a
page: the file is mapped, and one copy moves the unit. What fills the gaps are tensors too, of bytes
under a reserved name, for a safetensors file may have no holes
(https://github.com/huggingface/safetensors#format). No model has weights of such names: our reader
leaves them out, transformers lists them as unexpected, and diffusers, which would too, takes the
names from the index and so never hears of them. That is why a single file has an index as well.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from fastvideo_lightning.checkpoint.weights import DTYPES, PADDING, StoredWeight
from fastvideo_lightning.offload.blocks import find_block_lists
from fastvideo_lightning.offload.tensors.bindings import (
    TensorBinding,
    find_bindings,
    split_buffers,
    split_by_owner,
)
from fastvideo_lightning.offload.tensors.layout import ALIGNMENT_BYTES, SlabLayout, TensorSpec

PAGE_BYTES = 4096
SHARD_BYTES = 10_000_000_000
GPU = torch.device("cuda")

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class PackedTensor:
    """One entry of a file.

    Attributes:
        name: Its key.
        dtype: Dtype in the file.
        shape: Its shape.
        offset: Where it begins, counted from the end of the header.
        content: Where its values come from, a file or memory; None for padding.
    """

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int
    content: StoredWeight | torch.Tensor | None

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.offset + self.size_bytes


@dataclass(frozen=True)
class PackedFile:
    """One safetensors file that is to be written: entries without gaps, in order."""

    tensors: tuple[PackedTensor, ...]

    @cached_property
    def header(self) -> bytes:
        """The bytes before the first tensor, spaces at the end: the tensors begin on a page."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for tensor in self.tensors:
            if tensor.dtype not in _NAMES:
                raise ValueError(
                    f"{tensor.name} is of {tensor.dtype}, which a packed file cannot hold."
                )
            entries[tensor.name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [tensor.offset, tensor.end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        length = _align(8 + len(text), PAGE_BYTES) - 8
        return length.to_bytes(8, "little") + text.ljust(length)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + (self.tensors[-1].end if self.tensors else 0)

    @property
    def names(self) -> list[str]:
        """The names of the weights in it, without the padding."""
        return [tensor.name for tensor in self.tensors if tensor.content is not None]


def plan_files(
    module: nn.Module,
    sources: Mapping[str, StoredWeight],
    stem: str,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, PackedFile]:
    """Lay out the weights of a component, see Note [Packed files].

    Args:
        module: The component.
        sources: Where its weights on meta lie, by FQN inside `module`.
        stem: File name without endings, such as `model`.
        shard_bytes: A file takes no further unit beyond this size.

    Returns:
        The files by name. Units come first, in the order of the block lists, then the rest.
    """
    blocks = [block for found in find_block_lists(module) for _, block in found.blocks]
    units, outside = split_by_owner(find_bindings(module), blocks)
    plan = _Plan(shard_bytes)
    stored = _stored_names(module)
    rest: list[_Weight] = []
    for unit in units:
        moving, buffers = split_buffers(unit)
        outside += buffers
        weights = [_weights_of(binding, stored, sources) for binding in moving]
        plan.add_unit([first for first, *_ in weights])
        rest += [weight for _, *further in weights for weight in further]
    for binding in outside:
        rest += _weights_of(binding, stored, sources)
    plan.add_rest([weight for weight in rest if weight.name is not None])
    files = [PackedFile(tuple(tensors)) for tensors in plan.files if tensors]
    if len(files) == 1:
        return {f"{stem}.safetensors": files[0]}
    return {
        f"{stem}-{i:05}-of-{len(files):05}.safetensors": file for i, file in enumerate(files, 1)
    }


def make_index(files: Mapping[str, PackedFile]) -> dict[str, object] | None:
    """The index over a component's files, or None where one file says everything."""
    entries = sum(len(file.tensors) for file in files.values())
    weight_map = {name: path for path, file in files.items() for name in file.names}
    if len(files) == 1 and entries == len(weight_map):
        return None
    weights = [
        tensor for file in files.values() for tensor in file.tensors if tensor.content is not None
    ]
    total = sum(tensor.size_bytes for tensor in weights)
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


@dataclass(frozen=True)
class _Weight:
    """A tensor of the model: its name in the file, or None where its place there stays empty."""

    name: str | None
    spec: TensorSpec
    content: StoredWeight | torch.Tensor


@dataclass
class _Plan:
    """Files that grow: each a list of entries without gaps."""

    shard_bytes: int
    files: list[list[PackedTensor]] = field(default_factory=lambda: [[]])
    num_paddings: int = 0

    def add_unit(self, weights: list[_Weight]) -> None:
        """Put a unit on the next page, its tensors where a slot has them."""
        layout = SlabLayout([weight.spec for weight in weights])
        begin = self._make_room(layout.size_bytes, PAGE_BYTES)
        for weight, offset in zip(weights, layout.offsets, strict=True):
            if weight.name is not None:
                self._add(weight, begin + offset)

    def add_rest(self, weights: list[_Weight]) -> None:
        """Put tensors behind the units, from a page on."""
        for i, weight in enumerate(weights):
            alignment = ALIGNMENT_BYTES if i else PAGE_BYTES
            self._add(weight, self._make_room(weight.spec.size_bytes, alignment))

    @property
    def _end(self) -> int:
        return self.files[-1][-1].end if self.files[-1] else 0

    def _make_room(self, size_bytes: int, alignment: int) -> int:
        begin = _align(self._end, alignment)
        if begin and begin + size_bytes > self.shard_bytes:
            self.files.append([])
            return 0
        return begin

    def _add(self, weight: _Weight, offset: int) -> None:
        gap = offset - self._end
        if gap:
            name = f"{PADDING}{self.num_paddings}"
            self.num_paddings += 1
            self.files[-1].append(
                PackedTensor(name, torch.uint8, torch.Size([gap]), self._end, None)
            )
        assert weight.name is not None
        self.files[-1].append(
            PackedTensor(weight.name, weight.spec.dtype, weight.spec.shape, offset, weight.content)
        )


def _stored_names(module: nn.Module) -> set[str]:
    """The names that the library stores: of tied weights, only those that it ties others to."""
    tied: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    own = module.state_dict(keep_vars=True)
    return {name for name in own if tied.get(name) not in own or own[tied[name]] is not own[name]}


def _weights_of(
    binding: TensorBinding, stored: set[str], sources: Mapping[str, StoredWeight]
) -> list[_Weight]:
    """A tensor under the name it is stored by; more than one where the library knows no ties."""
    content = next((sources[name] for name in binding.names if name in sources), None)
    if content is not None:
        spec = TensorSpec.contiguous(content.shape, content.dtype_on(GPU))
    else:
        spec = TensorSpec.contiguous(binding.tensor.shape, binding.tensor.dtype)
    names: list[str | None] = [name for name in binding.names if name in stored]
    return [_Weight(name, spec, content or binding.tensor.detach()) for name in names or [None]]


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
