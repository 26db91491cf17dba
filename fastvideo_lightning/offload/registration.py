"""What of mapped files a rank registers where it brings a part of each unit.

Note [Registered parts]
Registering memory takes about as long as bringing it to the device once. So a rank that brings 1/N
of each unit registers the pages of its parts alone. One process may not register a page twice, nor
may a copy cross from one registration into the next: the parts of all units of a file are rounded
to pages and merged before the first is registered. What is brought as a whole later on, as a unit
that one rank was given an edit of, has its file registered anew, as a whole.
"""

from collections.abc import Iterable

from fastvideo_lightning.offload.distributed.shard_plan import cut
from fastvideo_lightning.offload.host.mapped import MappedFile, MappedSlab, merge

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
