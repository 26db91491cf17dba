"""GatherStream: each rank brings a part of a unit over its own link, and the parts are joined.

Where devices reach each other's memory, parts are pushed; elsewhere an all-gather joins them. See
Note [Parts and chunks], Note [Pushed parts] and Note [Agreement].
"""

import time
from collections.abc import Sequence
from functools import partial

import torch

from fastvideo_lightning.offload.distributed.agreement import SharedUnits
from fastvideo_lightning.offload.distributed.link_load import LinkLoad
from fastvideo_lightning.offload.distributed.peers import PeerSlots
from fastvideo_lightning.offload.distributed.process_group import ShardGroup
from fastvideo_lightning.offload.distributed.shard_plan import ShardPlan
from fastvideo_lightning.offload.host.slab import HostMaster
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.streams import CopyStream, InlineCopyStream
from fastvideo_lightning.offload.timing import DeviceClock
from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit


class GatherStream(CopyStream):
    """A copy stream, and beside it one on which the ranks' parts are joined.

    Args:
        device: a CUDA device.
        shared: the ranks and what they share.
        peers: the other ranks' slots; without, parts are joined by all-gathers.
    """

    is_gathered = True

    def __init__(
        self, device: torch.device, shared: SharedUnits, peers: PeerSlots | None = None
    ) -> None:
        super().__init__(device)
        self.shared = shared
        self.peers = peers
        self.gather_stream = torch.cuda.Stream(device, priority=-1)  # short, and others wait for it
        self._on_gather_stream = torch.cuda.stream(self.gather_stream)
        self._copied = torch.cuda.Event()

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """Agree with the other ranks, and let them know where parts are to go."""
        self.shared.agree(units, drain=self.drain)
        if self.peers is not None:
            self.peers.open(slots)

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Start the copies of this rank's parts, and what joins the parts behind them."""
        ready, free = slot.events()
        self.shared.arrive(master, self._mark)
        self.stream.wait_event(ready)  # a gather into the slot that nobody has waited for
        self.stream.wait_event(free)
        found = self.shared.find(master)
        if found is None:
            self.shared.bring_alone(master, self._mark, partial(super().copy, master, slot))
            return
        self.gather_stream.wait_event(ready)  # a whole unit, likewise: others may write behind this
        self.gather_stream.wait_event(free)
        with self._on_gather_stream:
            if self.peers is not None and slot in self.peers:
                self._push(found, slot, self.peers)
            else:
                self._join(found, slot)
            self.gather_stream.record_event(ready)

    def _push(self, found: ShardPlan, slot: DeviceSlot, peers: PeerSlots) -> None:
        """Bring this rank's parts, and as they come the other ranks get them too."""
        coming, going = self.stream.cuda_stream, self.gather_stream.cuda_stream
        peers.enter(slot, going)
        for pieces, chunk in found.steps():
            peers.bring(pieces, slot, coming)
            self._follow()
            if chunk is not None:
                peers.push(chunk, slot, going)
        peers.leave(slot, going)
        self.shared.joined += len(found.chunks)

    def _join(self, found: ShardPlan, slot: DeviceSlot) -> None:
        """Bring this rank's parts, and as they come all ranks' are gathered."""
        for pieces, chunk in found.steps():
            with self._on_stream:
                for part, offset in pieces:
                    slot.buffer[offset : offset + part.numel()].copy_(part, non_blocking=True)
            self._follow()
            if chunk is not None:
                self.shared.join(chunk, slot.buffer)

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def _follow(self) -> None:
        """Let the gather stream wait for the copies so far."""
        self.stream.record_event(self._copied)
        self.gather_stream.wait_event(self._copied)

    def drain(self) -> None:
        """Wait for the copies, for what joins them and for the stream that computes."""
        self.gather_stream.synchronize()
        super().drain()


class InlineGather(InlineCopyStream):
    """The same where there is no stream: all is done when the call returns.

    Args:
        shared: the ranks and what they share.
    """

    is_gathered = True

    def __init__(self, shared: SharedUnits) -> None:
        self.shared = shared

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """Agree with the other ranks."""
        self.shared.agree(units, drain=self.drain)

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Copy this rank's parts and join them, chunk by chunk."""
        self.shared.arrive(master, time.perf_counter)
        found = self.shared.find(master)
        if found is None:
            copy = partial(super().copy, master, slot)
            self.shared.bring_alone(master, time.perf_counter, copy)
            return
        for pieces, chunk in found.steps():
            for part, offset in pieces:
                slot.buffer[offset : offset + part.numel()].copy_(part)
            if chunk is not None:
                self.shared.join(chunk, slot.buffer)


Gather = GatherStream | InlineGather


def make_gather(
    device: torch.device,
    shards: ShardGroup,
    store: HostStore,
    *,
    common: Sequence[HostMaster] = (),
    alone_bytes_per_s: float | None = None,
) -> Gather:
    """The transport that joins parts on a device.

    Args:
        device: where the slots are.
        shards: the ranks.
        store: the units' host masters.
        common: masters that are joined without an agreement.
        alone_bytes_per_s: each link's rate when all ranks bring whole units; they do so where this
            rate is enough, see Note [Brought alone]. None: never.
    """
    link_load = None
    if alone_bytes_per_s is not None:
        link_load = LinkLoad(DeviceClock(device), alone_bytes_per_s)
    shared = SharedUnits(shards, store, link_load)
    for master in common:
        shared.add(master)
    if device.type == "cuda":
        return GatherStream(device, shared, PeerSlots(shards, device))
    return InlineGather(shared)
