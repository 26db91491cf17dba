"""CachingAllocator: what torch's allocator on CUDA reserves for a sequence of tensors.

The rules are those of `c10/cuda/CUDACachingAllocator` with its defaults: sizes are multiples of 512
bytes. Up to 1 MiB tensors share segments of 2 MiB, below 10 MiB segments of 20 MiB, and beyond that
a segment is as large as the first tensor in it, a multiple of 2 MiB. A tensor takes the smallest
free block that has room for it, and the rest of the block stays free for others where it is larger
than 1 MiB (among small tensors 512 bytes). Free neighbours are joined; segments stay reserved.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20
_ROUNDING, _SMALL, _SHARED, _STEP = 512, MIB, 10 * MIB, 2 * MIB


@dataclass(eq=False)
class Block:
    """A part of a segment, in use or free, between its neighbours in that segment."""

    start: int
    size_bytes: int
    is_small: bool
    is_free: bool = False
    before: "Block | None" = None
    behind: "Block | None" = None

    @property
    def key(self) -> tuple[int, int]:
        """What free blocks are ordered by: size, then address."""
        return self.size_bytes, self.start


class CachingAllocator:
    """Counts what is reserved; there is no memory behind it.

    Attributes:
        reserved_bytes: Bytes of all segments.
        peak_bytes: The most that was in use at once.
    """

    def __init__(self) -> None:
        self.reserved_bytes = self.peak_bytes = self._used = 0
        self._free: dict[bool, list[Block]] = {True: [], False: []}

    def take(self, size_bytes: int) -> Block:
        """Make room for a tensor."""
        size = max(-(-size_bytes // _ROUNDING), 1) * _ROUNDING
        is_small = size <= _SMALL
        free = self._free[is_small]
        place = bisect_left(free, (size, 0), key=lambda block: block.key)
        block = free.pop(place) if place < len(free) else self._reserve(size, is_small)
        block.is_free = False
        self._split(block, size)
        self._used += block.size_bytes
        self.peak_bytes = max(self.peak_bytes, self._used)
        return block

    def give_back(self, block: Block) -> None:
        """Take a tensor's room for free, and join it with what is free beside it."""
        self._used -= block.size_bytes
        for other in (block.before, block.behind):
            if other is not None and other.is_free:
                self._free[block.is_small].remove(other)
                block.start = min(block.start, other.start)
                block.size_bytes += other.size_bytes
                if other is block.before:
                    _join(other.before, block)
                else:
                    _join(block, other.behind)
        block.is_free = True
        insort(self._free[block.is_small], block, key=lambda each: each.key)

    def _reserve(self, size: int, is_small: bool) -> Block:
        segment = -(-size // _STEP) * _STEP
        if is_small:
            segment = 2 * MIB
        elif size < _SHARED:
            segment = 20 * MIB
        block = Block(self.reserved_bytes, segment, is_small)
        self.reserved_bytes += segment
        return block

    def _split(self, block: Block, size: int) -> None:
        rest = block.size_bytes - size
        if rest < _ROUNDING or not (block.is_small or rest > _SMALL):
            return
        free = Block(block.start + size, rest, block.is_small, is_free=True)
        block.size_bytes = size
        _join(free, block.behind)
        _join(block, free)
        insort(self._free[block.is_small], free, key=lambda each: each.key)


def _join(before: Block | None, behind: Block | None) -> None:
    if before is not None:
        before.behind = behind
    if behind is not None:
        behind.before = before


def reserved_for(sizes: Iterable[int]) -> int:
    """Bytes that are reserved for tensors that come one after the other and stay."""
    allocator = CachingAllocator()
    for size in sizes:
        allocator.take(size)
    return allocator.reserved_bytes
