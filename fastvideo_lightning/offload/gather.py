"""GatherStream: each rank brings a part of a unit over its own link, an all-gather joins the parts.

See Note [Parts and chunks] and Note [Agreement].
"""

from collections.abc import Sequence

import torch

from fastvideo_lightning.offload.agreement import SharedUnits
from fastvideo_lightning.offload.host import HostMaster, Segment
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
    """

    def __init__(self, device: torch.device, shared: SharedUnits) -> None:
        super().__init__(device)
        self.shared = shared
        self.gather_stream = torch.cuda.Stream(device)
        self._copied = torch.cuda.Event()

    def agree(self, units: Sequence[OffloadUnit]) -> None:
        """Agree with the other ranks."""
        self.shared.agree(units, drain=self.drain)

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
        self.shared.agree(units, drain=self.drain)

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
    return GatherStream(device, shared) if device.type == "cuda" else InlineGather(shared)
