"""What of mapped files a rank registers where it brings a part of each unit.

Note [Registered parts]
Registering memory takes about as long as bringing it to the device once. So a rank that brings 1/N
of each unit registers the pages of its parts alone. One process may not register a page twice, nor
may a copy cross from one registration into the next: the parts of all units of a file are rounded
to pages and merged before the first is registered. What is brought as a whole later on, as a unit
that one rank was given an edit of, has its file registered anew, as a whole.
"""

import mmap
from collections.abc import Iterable, Sequence

from fastvideo_lightning.offload import mapped_file
from fastvideo_lightning.offload.distributed.shard_plan import cut
from fastvideo_lightning.offload.host.mapped import MappedSlab
from fastvideo_lightning.offload.mapped_file import MappedFile, split_at_chunks

GAP_BYTES = 1 << 20
"""A gap that is registered with its neighbours: it takes no longer than one more call."""

MOST = 0.75
"""Of a file: where a rank brings more of it, it registers all, in a few calls."""


def register_parts(slabs: Iterable[MappedSlab], *, rank: int, num_ranks: int) -> None:
    """Register what a rank brings of units, see Note [Registered parts].

    Args:
        slabs: their masters, with all bytes in files.
        rank: the rank's place among those that share.
        num_ranks: how many share.

    Raises:
        RuntimeError: the system refuses.
    """
    parts: dict[MappedFile, list[tuple[int, int]]] = {}
    for slab in slabs:
        chunks, rest = cut(slab, rank=rank, num_ranks=num_ranks)
        for part, _ in [*(one for chunk in chunks for one in chunk.segments), *rest]:
            file, begin = slab.locate(part)
            parts.setdefault(file, []).append((begin, begin + part.numel()))
    for file, ranges in parts.items():
        pieces = merge(ranges, file.size_bytes)
        if sum(end - begin for begin, end in pieces) > MOST * file.size_bytes:
            file.register()
        else:
            file.register(pieces)


def register_ranges(slabs: Iterable[MappedSlab]) -> None:
    """Register what units have in files and no more: other units of the files are not to be held.

    Raises:
        RuntimeError: the system refuses.
    """
    ranges: dict[MappedFile, list[tuple[int, int]]] = {}
    for slab in slabs:
        for file, begin, size in slab.ranges:
            ranges.setdefault(file, []).extend(split_at_chunks(begin, begin + size))
    for file, found in ranges.items():
        file.register(merge(found, file.size_bytes))


def merge(ranges: Sequence[tuple[int, int]], size_bytes: int) -> list[tuple[int, int]]:
    """Pages of a file that cover ranges of its bytes, as pieces to be registered.

    Args:
        ranges: where each begins and ends; none crosses a multiple of ``mapped_file.CHUNK_BYTES``.
        size_bytes: of the file.

    Returns:
        Where each piece begins and ends, in order; no two share a page, and each of ``ranges`` lies
        within one.
    """
    page = mmap.PAGESIZE
    pieces: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        first, last = begin // page * page, min(-(-end // page) * page, size_bytes)
        if pieces and first - pieces[-1][1] <= GAP_BYTES:
            before, until = pieces[-1]
            if before // mapped_file.CHUNK_BYTES == first // mapped_file.CHUNK_BYTES:
                pieces[-1] = before, max(until, last)
                continue
            assert until <= first, "a range crosses a chunk of the file"
        pieces.append((first, last))
    return pieces
