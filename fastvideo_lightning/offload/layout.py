"""SlabLayout: where each tensor of a unit lies in one flat slab of bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ALIGNMENT_BYTES = 512
"""What CUDA's allocator aligns to: kernels meet a streamed weight as they would a resident one."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape, strides (in elements) and dtype of one tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        """Keep a dense tensor's memory format; a tensor with gaps becomes contiguous."""
        dense = torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format)
        return cls(tensor.shape, tuple(dense.stride()), tensor.dtype)

    @classmethod
    def contiguous(cls, shape: torch.Size, dtype: torch.dtype) -> "TensorSpec":
        """The spec of a contiguous tensor."""
        return cls(shape, tuple(torch.empty(shape, device="meta").stride()), dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return self.shape.numel() * self.dtype.itemsize

    def matches(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` has this shape, these strides and this dtype."""
        return (
            tensor.dtype == self.dtype
            and tensor.shape == self.shape
            and tuple(tensor.stride()) == self.stride
        )


class SlabLayout:
    """Offsets of a unit's tensors in its slab, each aligned to ``ALIGNMENT_BYTES``.

    The same layout holds for the host slab and for the device slot, so that one copy moves the
    unit.

    Args:
        specs: the tensors in the order in which they lie.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        offsets = []
        end = 0
        for spec in self.specs:
            offset = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            offsets.append(offset)
            end = offset + spec.size_bytes
        self.offsets = tuple(offsets)
        self.size_bytes = end

    def views(self, slab: torch.Tensor) -> list[torch.Tensor]:
        """The tensors as views of a slab.

        Args:
            slab: ``[bytes] uint8``, at least ``size_bytes`` long, on any device.

        Returns:
            One tensor per spec, sharing the slab's memory.
        """
        return [
            slab[offset : offset + spec.size_bytes]
            .view(spec.dtype)
            .as_strided(spec.shape, spec.stride)
            if spec.size_bytes
            else torch.empty(spec.shape, dtype=spec.dtype, device=slab.device)
            for spec, offset in zip(self.specs, self.offsets, strict=True)
        ]
