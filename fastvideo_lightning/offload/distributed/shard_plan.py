"""Cuts a unit into the parts that each rank brings.

Note [Parts and chunks]
A slab is cut into chunks, and each chunk into one part per rank, in the order of the ranks. A rank
copies its part to where it lies in the slot; then the chunk is joined: the others' parts are filled
in, in place. While one chunk is joined the next is copied. The last few bytes, which do not divide,
are copied by every rank, so that a slot is no longer than its unit. So are tensors that came to the
unit later, such as an adapter's. Every chunk costs the host time, so there are few.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

from fastvideo_lightning.offload.host.slab import ExtendedMaster, HostMaster, Segment
from fastvideo_lightning.offload.tensors.layout import ALIGNMENT_BYTES

CHUNK_BYTES = 32 << 20
"""The smallest chunk: long enough for a link's full speed."""

MOST_CHUNKS = 4
"""Chunks of a unit, at most: a quarter of it is joined behind its last copy."""


class Chunk(NamedTuple):
    """A piece of a slot that one collective joins.

    Attributes:
        begin: where it begins in the slot, in bytes.
        end: where it ends.
        own_begin: where this rank's part of it begins.
        own_end: where that ends.
        segments: what this rank copies there.
    """

    begin: int
    end: int
    own_begin: int
    own_end: int
    segments: list[Segment]


class ShardPlan(NamedTuple):
    """How a unit is brought: chunk by chunk, then what is left over."""

    chunks: list[Chunk]
    rest: list[Segment]

    def steps(self) -> Iterator[tuple[Sequence[Segment], Chunk | None]]:
        """What to copy, and the chunk that can be joined then; the rest is in the last step."""
        if not self.chunks:
            yield self.rest, None
            return
        *earlier, last = self.chunks
        for chunk in earlier:
            yield chunk.segments, chunk
        yield [*last.segments, *self.rest], last


def shard(master: HostMaster, *, rank: int, num_ranks: int) -> ShardPlan:
    """Divide a unit among the ranks, see Note [Parts and chunks]."""
    align = ALIGNMENT_BYTES
    common = master.base if isinstance(master, ExtendedMaster) else master
    parts = common.layout.size_bytes // (num_ranks * align)  # of this many bytes for each rank
    num_chunks = max(min(common.layout.size_bytes // CHUNK_BYTES, MOST_CHUNKS), 1)
    per_chunk = ceil(parts / num_chunks)
    chunks = []
    for first in range(0, parts, max(per_chunk, 1)):
        part_bytes = min(per_chunk, parts - first) * align
        begin = first * num_ranks * align
        own = begin + rank * part_bytes
        segments = clip(master.segments, own, own + part_bytes)
        chunks.append(Chunk(begin, begin + num_ranks * part_bytes, own, own + part_bytes, segments))
    end = parts * num_ranks * align
    return ShardPlan(chunks, clip(master.segments, end, master.layout.size_bytes))


def clip(segments: Sequence[Segment], begin: int, end: int) -> list[Segment]:
    """What of the segments falls between two positions of a slot."""
    clipped = []
    for part, offset in segments:
        first, last = max(begin, offset), min(end, offset + part.numel())
        if first < last:
            clipped.append(Segment(part[first - offset : last - offset], first))
    return clipped
