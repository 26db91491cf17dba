"""SharedUnits: which units the ranks bring in parts, and how they come to agree on it.

Note [Agreement]
Parts can only be joined where all ranks have the same bytes. Before each run each rank makes a
statement to the others (``Statement``). It says which units were edited: from then on every rank
brings an edited unit as a whole, from its own host copy, for edits may differ from rank to rank.
Where all ranks have edited a unit alike, as fusing an adapter does, its bytes go into shared memory
again. It says how many chunks the rank has joined: in a run all ranks must make the same calls. And
it says what the rank knows of its link, which settles the units that each rank brings alone, see
Note [Brought alone].
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from weakref import WeakKeyDictionary, WeakSet

import torch

from fastvideo_lightning.offload.distributed.link_load import MAX_LOAD, LinkLoad, MakeMark
from fastvideo_lightning.offload.distributed.process_group import ShardGroup
from fastvideo_lightning.offload.distributed.shard_plan import Chunk, ShardPlan, shard
from fastvideo_lightning.offload.distributed.shared_memory import load_together
from fastvideo_lightning.offload.host.slab import HostMaster, HostSlab
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.profiling import phase
from fastvideo_lightning.offload.residents import READ_THREADS
from fastvideo_lightning.offload.unit import OffloadUnit

_log = logging.getLogger(__name__)


class _Claim(IntEnum):
    """What a rank says of its bytes of a unit.

    APART: they are its own, and were found to differ from another rank's.
    EDITED: they are its own, and were not compared yet.
    SHARED: they are those of files that all ranks map.
    """

    APART = 0
    EDITED = 1
    SHARED = 2


@dataclass(frozen=True)
class Statement:
    """What a rank tells the others before a run.

    Attributes:
        joined: chunks that it has joined so far.
        claims: what it says of its bytes, for each unit.
        loads: the load of its link by each unit, in thousandths; 0 where it does not know.
        alone: whether it brings the unit as a whole, for each unit.
    """

    joined: int
    claims: Sequence[int]
    loads: Sequence[int]
    alone: Sequence[bool]

    def pack(self) -> list[int]:
        """All of it as whole numbers, as many on every rank with as many units."""
        return [self.joined, *self.claims, *self.loads, *self.alone]

    @classmethod
    def unpack(cls, numbers: Sequence[int]) -> "Statement":
        """What a rank has packed."""
        joined, *rest = numbers
        n = len(rest) // 3
        return cls(joined, rest[:n], rest[n : 2 * n], [bool(flag) for flag in rest[2 * n :]])


class SharedUnits:
    """What the ranks have agreed on: the units whose parts they join, see Note [Agreement].

    Args:
        shards: the ranks.
        store: the units' host masters.
        link_load: how busy this rank's link would be with whole units; without it, ranks never
            bring alone what they share.

    Attributes:
        joined: chunks that this rank has joined so far.
    """

    def __init__(
        self, shards: ShardGroup, store: HostStore, link_load: LinkLoad | None = None
    ) -> None:
        self.shards = shards
        self.store = store
        self.joined = 0
        self._link_load = link_load
        self._alone: WeakSet[HostMaster] = WeakSet()
        self._plans: WeakKeyDictionary[HostMaster, ShardPlan] = WeakKeyDictionary()
        self._apart: WeakSet[HostMaster] = WeakSet()

    @phase("agree with the other ranks")
    def agree(self, units: Sequence[OffloadUnit], *, drain: Callable[[], None]) -> None:
        """Settle which units come in parts; a collective call.

        Args:
            units: those of the engine, none of them in use but for transient ones.
            drain: waits for copies, before host memory goes.

        Raises:
            RuntimeError: the ranks have not made the same calls so far.
        """
        units = [unit for unit in units if not unit.transient]
        load_by = self._link_load.take() if self._link_load is not None else lambda _: 0
        mine = Statement(
            joined=self.joined,
            claims=[self._claim(unit) for unit in units],
            loads=[load_by(unit.slab) for unit in units],
            alone=[unit.slab in self._alone for unit in units],
        )
        packed = self.shards.all_gather_numbers(mine.pack())
        statements = [Statement.unpack(row) for row in packed.tolist()]
        self._check_step([each.joined for each in statements])
        self._settle_loads(units, statements)
        edited = []
        of_units = zip(*(each.claims for each in statements), strict=True)
        for unit, claims in zip(units, of_units, strict=True):
            assert unit.slab is not None
            if min(claims) != _Claim.SHARED:
                self._plans.pop(unit.slab, None)
            elif unit.slab not in self._plans:
                self.add(unit.slab)
            if set(claims) == {_Claim.EDITED}:
                edited.append(unit)
        if edited:
            drain()
            self._share_again(edited)

    def add(self, master: HostMaster) -> None:
        """Join a unit's parts from now on."""
        self._plans[master] = shard(master, rank=self.shards.rank, num_ranks=self.shards.size)

    def find(self, master: HostMaster) -> ShardPlan | None:
        """How a unit is brought; None where each rank brings it as a whole."""
        return None if master in self._alone else self._plans.get(master)

    def arrive(self, master: HostMaster, mark: MakeMark) -> None:
        """A unit is about to be copied."""
        if self._link_load is not None:
            self._link_load.arrive(master, mark)

    def bring_alone(self, master: HostMaster, mark: MakeMark, copy: Callable[[], None]) -> None:
        """Copy a unit that does not come in parts; its slot is free."""
        self.store.pin_again(master)
        if self._link_load is None:
            copy()
        else:
            self._link_load.time_alone(master, mark, copy)

    def join(self, chunk: Chunk, buffer: torch.Tensor) -> None:
        """Fill in the other ranks' parts of a chunk of a slot, on the current stream."""
        self.joined += 1
        self.shards.join(buffer[chunk.begin : chunk.end], buffer[chunk.own_begin : chunk.own_end])

    def _settle_loads(self, units: Sequence[OffloadUnit], statements: Sequence[Statement]) -> None:
        """Let ranks bring alone the units that all of their links are fast enough for.

        Where a rank does not know its load by a unit, the unit comes as before. Where it came
        differently before, for one rank has other memory for it since, it comes in parts.
        """
        changed: list[tuple[HostMaster, int]] = []
        of_units = zip(*(each.loads for each in statements), strict=True)
        were_alone = zip(*(each.alone for each in statements), strict=True)
        for unit, loads, alone in zip(units, of_units, were_alone, strict=True):
            assert unit.slab is not None
            is_known = min(loads) > 0
            is_alone = max(loads) < MAX_LOAD if is_known else all(alone)
            if is_alone == (unit.slab in self._alone):
                continue
            (self._alone.add if is_alone else self._alone.discard)(unit.slab)
            if is_alone:
                self.store.pin_again(unit.slab)
            if is_known:
                changed.append((unit.slab, max(loads)))
        if self.shards.rank == 0:
            self._tell(changed)

    def _tell(self, changed: Sequence[tuple[HostMaster, int]]) -> None:
        """Log which way units come from now on, and the load that decided it."""
        for how, is_alone in (("as a whole to each rank", True), ("in parts again", False)):
            loads = [load for master, load in changed if (master in self._alone) == is_alone]
            if loads:
                blocks = "1 block comes" if len(loads) == 1 else f"{len(loads)} blocks come"
                told = f"each link would be busy for {max(loads) / 10:.0f} % of the time"
                _log.info("%s %s from now on: %s with all of them.", blocks, how, told)

    def _claim(self, unit: OffloadUnit) -> _Claim:
        assert unit.slab is not None, f"{unit.fqn} is not attached"
        if unit.slab.is_shared:
            return _Claim.SHARED
        is_plain = isinstance(unit.slab, HostSlab) and unit.slab not in self._apart
        return _Claim.EDITED if is_plain else _Claim.APART

    def _check_step(self, counts: list[int]) -> None:
        if len(set(counts)) == 1:
            return
        told = ", ".join(f"rank {r}: {c}" for r, c in zip(self.shards.ranks, counts, strict=True))
        raise RuntimeError(
            "The ranks are out of step: they have made different calls of the model, or one has "
            f"failed in between (chunks joined so far: {told}). Start all of them again. Where "
            "ranks are to work apart from each other, pass shard_transport='local'."
        )

    def _share_again(self, units: Sequence[OffloadUnit]) -> None:
        """Put units that all ranks have edited alike into shared memory, one after the other."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            digests = self.shards.all_gather(list(pool.map(_digest, units)))
        for unit, *others in zip(units, *digests, strict=True):
            assert unit.slab is not None
            if len(set(others)) > 1:
                self._apart.add(unit.slab)
                continue
            unit.lay_out_anew(unit.bindings, self.store)
            with load_together(self.shards, self.store, [unit]):
                unit.load(self.store)
            self.add(unit.slab)


def _digest(unit: OffloadUnit) -> str:
    """A digest of a unit's layout and bytes."""
    assert unit.slab is not None
    digest = hashlib.blake2b(repr(unit.layout.specs).encode())
    for view in unit.slab.views:
        digest.update(view.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
