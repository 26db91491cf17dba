"""JoinedMaster: a unit's host master with a slab behind it, for tensors that came later.

An adapter adds small tensors to a block whose weights lie in a file or in a pinned slab. They get a
slab of their own; the block's bytes stay where they are and are not read again.
"""

import torch

from fastvideo_lightning.offload.host.slab import HostMaster, Segment


class JoinedMaster:
    """Two masters that a copy brings into one slot, one behind the other.

    Args:
        base: what the unit has had from the beginning.
        added: what came later.

    Attributes:
        layout: where the tensors of both lie in a slot; those of ``base`` lie where they lay.
        views: the tensors, first those of ``base``.
        segments: what a copy of the unit moves from host memory.
        reads: what it moves from files.
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
        self.reads = base.reads  # what is added lies in memory
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
