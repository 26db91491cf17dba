"""Host masters in memory of our own, exact in size, pinned where the system allows it.

torch's pinned allocator rounds every block up to a power of two, which makes a large model take
half as much memory again. A slab is anonymous memory of just the size that is needed, registered
with the driver.

An adapter adds small tensors to a block whose weights lie in a file or in a pinned slab. They get a
slab of their own behind it; the block's bytes stay where they are and are not read again.
"""

import mmap
from enum import StrEnum
from typing import NamedTuple, NoReturn, Protocol

import torch

from fastvideo_lightning.offload.coding.coded import CodedBytes
from fastvideo_lightning.offload.host.file_reads import FileRead
from fastvideo_lightning.offload.tensors.layout import SlabLayout


class HostMemory(StrEnum):
    """What kind of host memory holds the masters.

    AUTO: mapped where a unit's bytes lie in a file in the dtype that they run in, otherwise pinned.
    MAPPED: the checkpoint file itself, registered with the driver; held once however many
        processes.
    PINNED: memory of our own, of the exact size, registered with the driver.
    PAGEABLE: memory of our own as it is; copies from it are slower and do not overlap.
    COURIER: no memory: the checkpoint file is read on the way through a few pinned buffers, which
        hold half a GiB however large the model is. The page cache keeps what it has room for.
    DISK: the same past the page cache, for what would not stay in it.
    """

    AUTO = "auto"
    MAPPED = "mapped"
    PINNED = "pinned"
    PAGEABLE = "pageable"
    COURIER = "courier"
    DISK = "disk"

    @property
    def is_read(self) -> bool:
        """Whether the host holds no copy: the file is read on the way."""
        return self in (HostMemory.COURIER, HostMemory.DISK)

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"host_memory must be one of {', '.join(cls)}, got {value!r}")


class Segment(NamedTuple):
    """Host bytes (``[bytes] uint8``) that a copy brings to ``offset`` in a slot."""

    part: torch.Tensor
    offset: int


class HostMaster(Protocol):
    """Where a unit's bytes are on the host.

    Attributes:
        layout: where they lie in a slot.
        views: the tensors, in the order of ``layout.specs``.
        segments: host bytes that a copy of the unit moves.
        reads: file bytes that it moves, see Note [Couriers].
        coded: coded bytes that it moves, see Note [Coded units].
        is_filled: which of the tensors have their bytes without being read.
        is_shared: whether its bytes are those of files, which other processes map as well.
    """

    layout: SlabLayout
    views: list[torch.Tensor]
    segments: list[Segment]
    reads: tuple[FileRead, ...]
    coded: CodedBytes | None
    is_filled: tuple[bool, ...]

    @property
    def is_shared(self) -> bool: ...  # noqa: D102

    @property
    def pinned(self) -> bool:
        """Whether copies from it are asynchronous."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes that it holds on the host."""
        ...

    def pin(self) -> None:
        """Register the memory with the driver; RuntimeError where the system refuses."""
        ...

    def is_written(self) -> bool:
        """Whether a tensor was written in a way that copies would not see."""
        ...

    def close(self) -> None:
        """Take back the registration. No copy may be in flight; the tensors stay valid."""
        ...


class HostSlab:
    """One unit's bytes on the host.

    Every tensor of the slab has a storage of its own: it is an ordinary host tensor that can be
    pickled or kept after the slab is closed, and the memory lives as long as any of them.

    Args:
        layout: where the tensors lie.

    Attributes:
        buffer: ``[layout.size_bytes] uint8``, all of it, as one copy moves it.
        views: the tensors, in the order of ``layout.specs``.
        pinned: whether the memory is registered for direct copies to a CUDA device.
    """

    def __init__(self, layout: SlabLayout) -> None:
        self.layout = layout
        self.pinned = False
        self.is_shared = False
        self.is_filled = (False,) * len(layout.specs)
        self.reads: tuple[FileRead, ...] = ()
        self.coded: CodedBytes | None = None
        memory = _anonymous_memory(layout.size_bytes)
        self.buffer = torch.frombuffer(memory, dtype=torch.uint8)[: layout.size_bytes]
        self.views = [
            torch.frombuffer(
                memory, dtype=spec.dtype, count=spec.shape.numel(), offset=offset
            ).as_strided(spec.shape, spec.stride)
            if spec.size_bytes
            else torch.empty(spec.shape, dtype=spec.dtype)
            for spec, offset in zip(layout.specs, layout.offsets, strict=True)
        ]
        self.segments = [Segment(self.buffer, 0)]

    @property
    def size_bytes(self) -> int:
        """Bytes of the slab."""
        return self.layout.size_bytes

    def is_written(self) -> bool:
        """Never: the tensors are the slab."""
        return False

    def pin(self) -> None:
        """Register the memory with the CUDA driver.

        Raises:
            RuntimeError: the system refuses (a locked-memory limit, a container, no memory).
        """
        if self.pinned or not self.layout.size_bytes:
            return
        register(self.buffer)
        self.pinned = True

    def close(self) -> None:
        """Take back the registration. No copy may be in flight; the tensors stay valid."""
        if self.pinned:
            self.pinned = False
            unregister(self.buffer)


def register(part: torch.Tensor, flags: int = 0) -> None:
    """Register host memory with the CUDA driver (``cudaHostRegister``).

    Raises:
        RuntimeError: the system refuses.
    """
    code = torch.cuda.cudart().cudaHostRegister(part.data_ptr(), part.numel(), flags)
    if int(code) != 0:
        raise RuntimeError(f"cudaHostRegister of {part.numel()} bytes: {code}")


def unregister(part: torch.Tensor) -> None:
    """Take back a registration."""
    torch.cuda.cudart().cudaHostUnregister(part.data_ptr())


def _anonymous_memory(size_bytes: int) -> mmap.mmap:
    """Zeroed pages of just this size, huge ones where the kernel gives them."""
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class ExtendedMaster:
    """Two masters that a copy brings into one slot, one behind the other.

    Args:
        base: what the unit has had from the beginning.
        added: what came later.

    Attributes:
        layout: where the tensors of both lie in a slot; those of ``base`` lie where they lay.
        views: the tensors, first those of ``base``.
        segments: host bytes that a copy of the unit moves.
        reads: file bytes that it moves.
        coded: coded bytes that it moves.
        is_filled: which of the tensors have their bytes without being read.
    """

    def __init__(self, base: HostMaster, added: HostMaster) -> None:
        self.base = base
        self.added = added
        start = base.layout.start_behind
        self.layout = base.layout.followed_by(added.layout)
        self.views: list[torch.Tensor] = [*base.views, *added.views]
        behind = [Segment(part, start + offset) for part, offset in added.segments]
        self.segments = [*base.segments, *behind]
        self.reads, self.coded = base.reads, base.coded  # what is added lies in memory
        self.is_filled = (*base.is_filled, *added.is_filled)

    @property
    def is_shared(self) -> bool:
        """Whether the bytes of ``base`` are; those of ``added`` are each process's own."""
        return self.base.is_shared

    @property
    def pinned(self) -> bool:
        """Whether copies from both are asynchronous."""
        return self.base.pinned and self.added.pinned

    @property
    def size_bytes(self) -> int:
        """Bytes that both hold on the host."""
        return self.base.size_bytes + self.added.size_bytes

    def pin(self) -> None:
        """Register the memory of both; RuntimeError where the system refuses."""
        self.base.pin()
        self.added.pin()

    def is_written(self) -> bool:
        """Whether a tensor was written in a way that copies would not see."""
        return self.base.is_written() or self.added.is_written()

    def close(self) -> None:
        """Take back both registrations. No copy may be in flight; the tensors stay valid."""
        self.base.close()
        self.added.close()
