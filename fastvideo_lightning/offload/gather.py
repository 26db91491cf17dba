"""GatherStream: each rank brings a part of a unit over its own link, and the parts are joined.

They are pushed where devices reach each other's memory, and else joined by an all-gather. See Note
[Parts and chunks], Note [Pushed parts] and Note [Agreement].
"""

from collections.abc import Sequence

import torch

from fastvideo_lightning.offload.agreement import SharedUnits
from fastvideo_lightning.offload.host import HostMaster
from fastvideo_lightning.offload.parts import Cut
from fastvideo_lightning.offload.peers import PeerSlots
from fastvideo_lightning.offload.shards import ShardGroup
from fastvideo_lightning.offload.slots import DeviceSlot
from fastvideo_lightning.offload.store import HostStore
from fastvideo_lightning.offload.streams import CopyStream, InlineCopyStream
from fastvideo_lightning.offload.unit import OffloadUnit


class GatherStream(CopyStream):
    """A copy stream, and beside it one on which the ranks' parts are joined.

    Args:
        device: a CUDA device.
        shared: the ranks and what they share.
        peers: the other ranks' slots; without, parts are joined by all-gathers.
    """

    def __init__(
        self, device: torch.device, shared: SharedUnits, peers: PeerSlots | None = None
    ) -> None:
        super().__init__(device)
        self.shared = shared
        self.peers = peers
        self.gather_stream = torch.cuda.Stream(device, priority=-1)  # short, and others wait for it
        self._on_gather_stream = torch.cuda.stream(self.gather_stream)
        self._copied: list[torch.cuda.Event] = []

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """Agree with the other ranks, and let them know where parts are to go."""
        self.shared.agree(units, drain=self.drain)
        if self.peers is not None:
            self.peers.open(slots)

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Start the copies of this rank's parts, and the collectives behind them."""
        ready, free = slot.events()
        self.stream.wait_event(ready)  # a gather into the slot that nobody has waited for
        found = self.shared.find(master)
        if found is None:
            self.shared.store.pin_again(master)
            super().copy(master, slot)
            return
        self.stream.wait_event(free)
        copied = self._start_copies(found, slot)
        with self._on_gather_stream:
            if self.peers is not None and slot in self.peers:
                self.gather_stream.wait_event(free)
                self._push(found, slot, copied, self.peers)
            else:
                self._join(found, slot, copied)
            self.gather_stream.record_event(ready)

    def _start_copies(self, found: Cut, slot: DeviceSlot) -> Sequence[torch.cuda.Event]:
        """Start copies of this rank's parts and of the rest; an event is recorded behind each."""
        pieces = [*(chunk.segments for chunk in found.chunks), found.rest]
        while len(self._copied) < len(pieces):
            self._copied.append(torch.cuda.Event())
        with self._on_stream:
            for segments, copied in zip(pieces, self._copied, strict=False):
                for part, offset in segments:
                    slot.buffer[offset : offset + part.numel()].copy_(part, non_blocking=True)
                self.stream.record_event(copied)
        return self._copied[: len(pieces)]

    def _push(
        self, found: Cut, slot: DeviceSlot, copied: Sequence[torch.cuda.Event], peers: PeerSlots
    ) -> None:
        """On the current stream: as parts come, the other ranks get them too."""
        peers.enter(slot)
        for chunk, event in zip(found.chunks, copied, strict=False):
            self.gather_stream.wait_event(event)
            peers.push(chunk, slot)
        self.gather_stream.wait_event(copied[-1])
        peers.meet()
        self.shared.joined += len(found.chunks)

    def _join(self, found: Cut, slot: DeviceSlot, copied: Sequence[torch.cuda.Event]) -> None:
        """On the current stream: as parts come, all ranks' are gathered."""
        for chunk, event in zip(found.chunks, copied, strict=False):
            self.gather_stream.wait_event(event)
            self.shared.join(chunk, slot.buffer)
        self.gather_stream.wait_event(copied[-1])

    def drain(self) -> None:
        """Wait for the copies, the collectives and the stream that computes."""
        self.gather_stream.synchronize()
        super().drain()


class InlineGather(InlineCopyStream):
    """The same where there is no stream: all is done when the call returns.

    Args:
        shared: the ranks and what they share.
    """

    def __init__(self, shared: SharedUnits) -> None:
        self.shared = shared

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """Agree with the other ranks."""
        self.shared.agree(units, drain=self.drain)

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Copy this rank's parts and join them, chunk by chunk."""
        found = self.shared.find(master)
        if found is None:
            self.shared.store.pin_again(master)
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
    device: torch.device, shards: ShardGroup, store: HostStore, common: Sequence[HostMaster] = ()
) -> Gather:
    """The transport that joins parts on a device.

    Args:
        device: where the slots are.
        shards: the ranks.
        store: the units' host masters.
        common: what is joined without being agreed on.
    """
    shared = SharedUnits(shards, store)
    for master in common:
        shared.add(master)
    if device.type == "cuda":
        return GatherStream(device, shared, PeerSlots(shards, device))
    return InlineGather(shared)
