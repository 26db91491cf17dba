"""Weights that the processes of a node hold together: each byte is read once and held once.

Note [One copy for a node]
A weight that does not lie in a checkpoint's file as it runs (it needs a cast, or was in memory
before) goes into a file in memory that all processes of the node map. Each fills a part, so that
together they read each byte once. From then on it is a mapped file like any other: every rank sees
all host tensors, and a rank's writes are its own, see Note [Two mappings]. The file has no name in
any file system: it is gone with the last process, however that process ends.

Note [Registered parts]
Registering memory takes about as long as bringing it to the device once. So a rank that brings 1/N
of each unit registers the pages of its parts alone. One process may not register a page twice, nor
may a copy cross from one registration into the next: the parts of all units of a file are rounded
to pages and merged before the first is registered. Where a unit comes as a whole later on, as after
an edit on one rank, its file is registered anew, as a whole.
"""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from fastvideo_lightning.offload.distributed.process_group import ShardGroup
from fastvideo_lightning.offload.distributed.shard_plan import shard
from fastvideo_lightning.offload.host.mapped import (
    MappedFile,
    MappedSlab,
    close_file,
    is_mappable,
    merge,
    open_file,
)
from fastvideo_lightning.offload.host.slab import HostMemory
from fastvideo_lightning.offload.host.store import FileLocations, HostStore
from fastvideo_lightning.offload.profiling import phase
from fastvideo_lightning.offload.residents import READ_THREADS
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.tensors.leaves import find_leaves
from fastvideo_lightning.offload.tensors.sources import FileBytes, StoredBytes, WeightSource
from fastvideo_lightning.offload.unit import OffloadUnit

_numbers = count()


@dataclass(frozen=True)
class _Job:
    """A tensor to be put into the file in memory, and what it comes from."""

    spec: TensorSpec
    offset: int
    source: WeightSource | torch.Tensor

    def write_to(self, memory: torch.Tensor) -> None:
        flat = memory[self.offset : self.offset + self.spec.size_bytes].view(self.spec.dtype)
        out = flat.as_strided(self.spec.shape, self.spec.stride)
        if isinstance(self.source, torch.Tensor):
            out.copy_(self.source.detach())
        else:
            self.source.read_into(out)


@contextmanager
def load_together(
    shards: ShardGroup, store: HostStore, units: Sequence[OffloadUnit]
) -> Iterator[None]:
    """Surround the loading of units: the ranks fill the memory that they share; collective."""
    streamed = [unit for unit in units if not unit.transient]
    if not streamed:
        yield
        return

    def maps(unit: OffloadUnit) -> bool:
        return store.maps(unit.layout, unit.sources, unit.host_memory)

    with sharing(shards, streamed, maps) as store.locations:
        try:
            yield
            store.locations = {}
            if store.brings_parts:
                _pin_parts(shards, store, streamed)
        finally:
            store.locations = {}


def _pin_parts(shards: ShardGroup, store: HostStore, units: Sequence[OffloadUnit]) -> None:
    """Pin the bytes that this rank brings of loaded units."""
    fits = [unit for unit in units if unit.host_memory is not HostMemory.PAGEABLE]
    slabs = [unit.slab for unit in fits if isinstance(unit.slab, MappedSlab)]
    if store.registers_files:
        with phase("register parts"), suppress(RuntimeError):  # the same is tried below
            register_parts(
                [slab for slab in slabs if slab.is_shared],
                rank=shards.rank,
                num_ranks=shards.size,
            )
    for unit in fits:
        if unit.slab is not None and not unit.slab.pinned:
            unit.pin(store)


@contextmanager
def sharing(
    shards: ShardGroup,
    units: Sequence[OffloadUnit],
    maps: Callable[[OffloadUnit], bool],
) -> Iterator[FileLocations]:
    """Fill shared memory with units' bytes, each rank its part; a collective call.

    Args:
        shards: the ranks that share.
        units: planned and not yet loaded; loading them within the context maps the memory.
        maps: whether what fits of a unit's file stays there.

    Yields:
        Where each unit's tensors are.

    Raises:
        RuntimeError: the ranks have different units, or one of them failed.
    """
    name = Path(f"/memory/{shards.all_gather((os.getpid(), next(_numbers)))[0]}")
    locations: FileLocations = {}
    jobs: list[_Job] = []
    size = 0
    for unit in units:
        size = _arrange(unit, name, size, locations, jobs, maps=maps(unit))
    with phase("compare the ranks' weights"):
        _check_alike(shards, units, locations)
    with phase("fill shared memory"):
        file = _open_memory(shards, name, size, jobs) if size else None
    try:
        with shards.fail_together():
            yield locations
    finally:
        if file is not None:
            close_file(file)  # the units' masters have it open


def _arrange(
    unit: OffloadUnit,
    name: Path,
    begin: int,
    locations: FileLocations,
    jobs: list[_Job],
    *,
    maps: bool,
) -> int:
    """Lay a unit's tensors out from ``begin`` of the file on; return the end."""
    leaves = [leaf for b in unit.bindings for leaf in find_leaves(b.tensor, b.fqn)]
    triples = list(zip(unit.layout.specs, unit.sources, leaves, strict=True))
    stays = [maps and is_mappable(source, spec.dtype) for spec, source, _ in triples]
    moving = [triple for triple, stay in zip(triples, stays, strict=True) if not stay]
    layout = SlabLayout([spec for spec, _, _ in moving])
    offsets = iter(layout.offsets)
    found: list[StoredBytes | None] = []
    for (spec, source, leaf), stay in zip(triples, stays, strict=True):
        if stay:
            found.append(source)
            continue
        offset = begin + next(offsets)
        if not spec.size_bytes:
            found.append(None)
            continue
        found.append(FileBytes(name, offset, spec.shape, spec.dtype))
        from_file = None if isinstance(source, FileBytes) else source
        jobs.append(_Job(spec, offset, leaf if from_file is None else from_file))
    locations[unit.layout] = found
    end = begin + layout.size_bytes
    return -(-end // mmap.PAGESIZE) * mmap.PAGESIZE  # a page is written for one unit only


def _open_memory(shards: ShardGroup, name: Path, size: int, jobs: Sequence[_Job]) -> MappedFile:
    """Make the file in memory, fill it together, map it."""
    descriptor = os.memfd_create("fastvideo-lightning") if shards.rank == 0 else -1
    if descriptor >= 0:
        os.ftruncate(descriptor, size)
    where = Path(shards.all_gather(f"/proc/{os.getpid()}/fd/{descriptor}")[0])
    try:
        with shards.fail_together():
            with where.open("r+b") as opened:
                memory = torch.frombuffer(mmap.mmap(opened.fileno(), 0), dtype=torch.uint8)
            with ThreadPoolExecutor(READ_THREADS) as pool:
                mine = _share_of(shards, jobs)
                list(pool.map(lambda job: job.write_to(memory), mine))
            file = open_file(name, at=where)
            file.sharers = shards.size
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return file


def _share_of(shards: ShardGroup, jobs: Sequence[_Job]) -> list[_Job]:
    """What this rank fills: each tensor goes to the rank that has least to do so far."""
    loads = [0] * shards.size
    mine = []
    for job in jobs:
        rank = loads.index(min(loads))
        loads[rank] += job.spec.size_bytes
        if rank == shards.rank:
            mine.append(job)
    return mine


def _check_alike(
    shards: ShardGroup, units: Sequence[OffloadUnit], locations: FileLocations
) -> None:
    """RuntimeError where a rank has other units, or other files, than the first."""
    digest = hashlib.sha256()
    for unit in units:
        digest.update(repr((unit.fqn, unit.layout.specs, locations[unit.layout])).encode())
    paths = {p.path for found in locations.values() for p in found if p is not None}
    for path in sorted(path for path in paths if path is not None and path.exists()):
        of_file = path.stat()
        digest.update(repr((of_file.st_size, of_file.st_mtime_ns)).encode())
    digests = shards.all_gather(digest.hexdigest())
    for rank, other in zip(shards.ranks, digests, strict=True):
        if other != digests[0]:
            raise RuntimeError(
                f"Rank {rank} has other weights to stream than rank {shards.ranks[0]}. Ranks that "
                "stream together need the same checkpoint and the same callbacks, attached in the "
                "same order."
            )


MOST = 0.75
"""Share of a file: a rank that brings more of it registers all, in a few calls."""


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
        chunks, rest = shard(slab, rank=rank, num_ranks=num_ranks)
        for part, _ in [*(one for chunk in chunks for one in chunk.segments), *rest]:
            file, begin = slab.locate(part)
            parts.setdefault(file, []).append((begin, begin + part.numel()))
    for file, ranges in parts.items():
        pieces = merge(ranges, file.size_bytes)
        if sum(end - begin for begin, end in pieces) > MOST * file.size_bytes:
            file.register()
        else:
            file.register(pieces)
