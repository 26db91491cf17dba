"""SlabLayout: where each tensor of a unit lies in one flat slab of bytes.

Note [Addresses and last bits]
Kernels choose their code by the alignment of what they read. On CUDA every tensor of a slab is
aligned as CUDA's allocator aligns, so that a streamed weight meets the kernel that a resident one
meets. On the CPU, BLAS gives other last bits where a matrix begins 4, 8 or 12 bytes behind a
multiple of 16, and a loader that maps a checkpoint leaves each weight wherever its file has it. A
weight that computes on the CPU therefore keeps its phase: its address modulo ``PHASE_BYTES``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

ALIGNMENT_BYTES = 512
"""What CUDA's allocator aligns to."""

PHASE_BYTES = 64
"""What torch's CPU allocator aligns to."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape, strides (in elements) and dtype of one tensor, and its phase (in bytes)."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    phase: int = 0

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        """Keep a dense tensor's memory format; a tensor with gaps becomes contiguous."""
        dense = torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format)
        return cls(tensor.shape, tuple(dense.stride()), tensor.dtype)

    @classmethod
    def contiguous(cls, shape: torch.Size, dtype: torch.dtype) -> "TensorSpec":
        """The spec of a contiguous tensor."""
        return cls(shape, tuple(torch.empty(shape, device="meta").stride()), dtype)

    def at(self, address: int) -> "TensorSpec":
        """The spec with the phase of an address, see Note [Addresses and last bits]."""
        phase = address % PHASE_BYTES
        return self if phase % self.dtype.itemsize else replace(self, phase=phase)

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
            offset = -(-(end - spec.phase) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + spec.phase
            offsets.append(offset)
            end = offset + spec.size_bytes
        self.offsets = tuple(offsets)
        self.size_bytes = end

    def followed_by(self, other: "SlabLayout") -> "SlabLayout":
        """This layout with ``other`` behind it; the tensors of both keep their distances."""
        joined = SlabLayout(())
        start = self.start_behind
        joined.specs = (*self.specs, *other.specs)
        joined.offsets = (*self.offsets, *(start + offset for offset in other.offsets))
        joined.size_bytes = start + other.size_bytes
        return joined

    @property
    def start_behind(self) -> int:
        """Where a layout that follows this one begins."""
        return -(-self.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def matches(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the tensors are those that are laid out, by shape, strides and dtype."""
        return len(tensors) == len(self.specs) and all(
            spec.matches(tensor) for spec, tensor in zip(self.specs, tensors, strict=True)
        )

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


def empty_host_tensor(spec: TensorSpec) -> torch.Tensor:
    """An ordinary host tensor of this spec, at an address of its phase."""
    memory = torch.empty(spec.size_bytes + PHASE_BYTES, dtype=torch.uint8)
    start = (spec.phase - memory.data_ptr()) % PHASE_BYTES
    flat = memory[start : start + spec.size_bytes].view(spec.dtype)
    return flat.as_strided(spec.shape, spec.stride)
