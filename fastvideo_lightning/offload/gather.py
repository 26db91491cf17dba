"""GatherStream: each rank brings a part of a unit over its own link, an all-gather joins the parts.

Note [Parts and chunks]
A slab is cut into chunks, and each chunk into one part per rank, in the order of the ranks. A rank
copies its part to where it lies in the slot; the all-gather of the chunk then fills in the others'
parts, in place. While one chunk is joined the next is copied. The last few bytes, which do not
divide, are copied by every rank, so that a slot is no longer than its unit; so is what came to the
unit later, such as an adapter.

Note [Agreement]
Parts can only be joined where all ranks have the same bytes. Before each run the ranks tell each
other which units they were given edits of. Such a unit is brought as a whole by every rank from
then on, each from its own host copy: edits may differ from rank to rank, as without sharing. They
also compare how many collectives they have started. In a run all ranks must make the same calls.
"""

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from fastvideo_lightning.offload.host import HostMaster, Segment
from fastvideo_lightning.offload.joined import JoinedMaster
from fastvideo_lightning.offload.layout import ALIGNMENT_BYTES
from fastvideo_lightning.offload.shards import ShardGroup
from fastvideo_lightning.offload.slots import DeviceSlot
from fastvideo_lightning.offload.streams import CopyStream, InlineCopyStream
from fastvideo_lightning.offload.unit import OffloadUnit

CHUNK_BYTES = 32 << 20
"""Long enough for a link's full speed, short enough for a block to have several."""


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


class Cut(NamedTuple):
    """How a unit is brought: chunk by chunk, then what is left over."""

    chunks: list[Chunk]
    rest: list[Segment]


def cut(master: HostMaster, *, rank: int, num_ranks: int) -> Cut:
    """Divide a unit among the ranks, see Note [Parts and chunks]."""
    align = ALIGNMENT_BYTES
    common = master.base if isinstance(master, JoinedMaster) else master
    parts = common.layout.size_bytes // (num_ranks * align)  # of this many bytes for each rank
    per_chunk = max(CHUNK_BYTES // (num_ranks * align), 1)
    chunks = []
    for first in range(0, parts, per_chunk):
        part_bytes = min(per_chunk, parts - first) * align
        begin = first * num_ranks * align
        own = begin + rank * part_bytes
        segments = clip(master.segments, own, own + part_bytes)
        chunks.append(Chunk(begin, begin + num_ranks * part_bytes, own, own + part_bytes, segments))
    end = parts * num_ranks * align
    return Cut(chunks, clip(master.segments, end, master.layout.size_bytes))


def clip(segments: Sequence[Segment], begin: int, end: int) -> list[Segment]:
    """What of the segments falls between two positions of a slot."""
    clipped = []
    for part, offset in segments:
        first, last = max(begin, offset), min(end, offset + part.numel())
        if first < last:
            clipped.append(Segment(part[first - offset : last - offset], first))
    return clipped


class SharedUnits:
    """What the ranks have agreed on: the units whose parts they join, see Note [Agreement].

    Args:
        shards: the ranks.

    Attributes:
        joined: chunks that this rank has joined so far.
    """

    def __init__(self, shards: ShardGroup) -> None:
        self.shards = shards
        self.joined = 0
        self._cuts: WeakKeyDictionary[HostMaster, Cut] = WeakKeyDictionary()

    def agree(self, units: Sequence[OffloadUnit]) -> None:
        """Settle which units are joined; a collective call.

        Raises:
            RuntimeError: the ranks have not made the same calls so far.
        """
        masters = [unit.slab for unit in units if unit.slab is not None and not unit.transient]
        mine = [int(master.is_shared) for master in masters]
        known = self.shards.exchange_numbers([self.joined, *mine])
        counts = known[:, 0].tolist()
        if len(set(counts)) > 1:
            told = ", ".join(
                f"rank {r}: {c}" for r, c in zip(self.shards.ranks, counts, strict=True)
            )
            raise RuntimeError(
                "The ranks are out of step: they have made different calls of the model, or one "
                f"has failed in between (chunks joined so far: {told}). Start all of them again. "
                "Where ranks are to work apart from each other, pass shard_transport='local'."
            )
        for master, is_shared in zip(masters, known[:, 1:].all(dim=0).tolist(), strict=True):
            if not is_shared:
                self._cuts.pop(master, None)
            elif master not in self._cuts:
                self.add(master)

    def add(self, master: HostMaster) -> None:
        """Join a unit's parts from now on."""
        self._cuts[master] = cut(master, rank=self.shards.rank, num_ranks=self.shards.size)

    def find(self, master: HostMaster) -> Cut | None:
        """How a unit is brought; None where each rank brings it as a whole."""
        return self._cuts.get(master)

    def join(self, chunk: Chunk, buffer: torch.Tensor) -> None:
        """Fill in the other ranks' parts of a chunk of a slot, on the current stream."""
        self.joined += 1
        self.shards.join(buffer[chunk.begin : chunk.end], buffer[chunk.own_begin : chunk.own_end])


class GatherStream(CopyStream):
    """A copy stream, and beside it one on which the ranks' parts are joined.

    Args:
        device: a CUDA device.
        shared: the ranks and what they share.
    """

    def __init__(self, device: torch.device, shared: SharedUnits) -> None:
        super().__init__(device)
        self.shared = shared
        self.gather_stream = torch.cuda.Stream(device)
        self._copied = torch.cuda.Event()

    def agree(self, units: Sequence[OffloadUnit]) -> None:
        """Agree with the other ranks."""
        self.shared.agree(units)

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Start the copies of this rank's parts, and the collectives behind them."""
        ready, free = slot.events()
        self.stream.wait_event(ready)  # a gather into the slot that nobody has waited for
        found = self.shared.find(master)
        if found is None:
            super().copy(master, slot)
            return
        self.stream.wait_event(free)
        for chunk in found.chunks:
            self._start(chunk.segments, slot)
            with torch.cuda.stream(self.gather_stream):
                self.shared.join(chunk, slot.buffer)
        self._start(found.rest, slot)
        self.gather_stream.record_event(ready)

    def drain(self) -> None:
        """Wait for the copies, the collectives and the stream that computes."""
        self.gather_stream.synchronize()
        super().drain()

    def _start(self, segments: Sequence[Segment], slot: DeviceSlot) -> None:
        """Start copies; the gather stream goes on when they are done."""
        with torch.cuda.stream(self.stream):
            for part, offset in segments:
                slot.buffer[offset : offset + part.numel()].copy_(part, non_blocking=True)
            self.stream.record_event(self._copied)
        self.gather_stream.wait_event(self._copied)


class InlineGather(InlineCopyStream):
    """The same where there is no stream: all is done when the call returns.

    Args:
        shared: the ranks and what they share.
    """

    def __init__(self, shared: SharedUnits) -> None:
        self.shared = shared

    def agree(self, units: Sequence[OffloadUnit]) -> None:
        """Agree with the other ranks."""
        self.shared.agree(units)

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Copy this rank's parts and join them, chunk by chunk."""
        found = self.shared.find(master)
        if found is None:
            super().copy(master, slot)
            return
        for chunk in found.chunks:
            for part, offset in chunk.segments:
                slot.buffer[offset : offset + part.numel()].copy_(part)
            self.shared.join(chunk, slot.buffer)
        for part, offset in found.rest:
            slot.buffer[offset : offset + part.numel()].copy_(part)


Gather = GatherStream | InlineGather


def make_gather(
    device: torch.device, shards: ShardGroup, common: Sequence[HostMaster] = ()
) -> Gather:
    """The transport that joins parts on a device.

    Args:
        device: where the slots are.
        shards: the ranks.
        common: what is joined without being agreed on.
    """
    shared = SharedUnits(shards)
    for master in common:
        shared.add(master)
    return GatherStream(device, shared) if device.type == "cuda" else InlineGather(shared)
