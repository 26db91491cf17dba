"""CopyStream: how a slab gets into a slot, and who waits for whom.

Note [Slots and events]
A slot carries two events. ``ready`` is recorded on the copy stream behind the copy into the slot;
whoever computes from the slot lets its stream wait for it. ``free`` is recorded on the computing
stream behind the last kernel that read the slot; the next copy into the slot waits for it. The host
never waits, nothing is allocated, and memory that outlives every copy needs no ``record_stream``.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from fastvideo_lightning.offload.host import HostMaster
from fastvideo_lightning.offload.slots import DeviceSlot
from fastvideo_lightning.offload.unit import OffloadUnit


class Transport(Protocol):
    """Moves host bytes into slots and keeps readers and writers of a slot apart."""

    def agree(self, units: Sequence[OffloadUnit]) -> None:
        """Called before a run, when edits were taken over; what a run may rely on is settled."""
        ...

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Start bringing a unit's bytes to their places in ``slot``."""
        ...

    def wait(self, slot: DeviceSlot) -> None:
        """Let the current compute stream wait until the last copy into ``slot`` is done."""
        ...

    def release(self, slot: DeviceSlot) -> None:
        """Say that all reads of ``slot`` are enqueued: the next copy into it comes after them."""
        ...

    def drain(self) -> None:
        """Block the host until every copy is done and no kernel reads a slot."""
        ...


class CopyStream:
    """One CUDA stream for all copies of an engine, see Note [Slots and events].

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def agree(self, units: Sequence[OffloadUnit]) -> None:
        """Nobody to agree with."""

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Start the copies once the slot's last reader is through."""
        ready, free = slot.events()
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(free)
            for part, offset in master.segments:
                slot.buffer[offset : offset + part.numel()].copy_(part, non_blocking=True)
            self.stream.record_event(ready)

    def wait(self, slot: DeviceSlot) -> None:
        """Order the current stream behind the slot's copy."""
        torch.cuda.current_stream(self.device).wait_event(slot.events()[0])

    def release(self, slot: DeviceSlot) -> None:
        """Record that the current stream is the slot's last reader."""
        torch.cuda.current_stream(self.device).record_event(slot.events()[1])

    def drain(self) -> None:
        """Wait for the copy stream and for the stream that computes."""
        self.stream.synchronize()
        torch.cuda.current_stream(self.device).synchronize()


class InlineCopyStream:
    """The transport where there is no stream: a copy is done when the call returns."""

    def agree(self, units: Sequence[OffloadUnit]) -> None:
        """Nobody to agree with."""

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Copy at once."""
        for part, offset in master.segments:
            slot.buffer[offset : offset + part.numel()].copy_(part)

    def wait(self, slot: DeviceSlot) -> None:
        """Nothing to wait for."""

    def release(self, slot: DeviceSlot) -> None:
        """Nothing to order."""

    def drain(self) -> None:
        """Nothing in flight."""


def make_transport(device: torch.device) -> Transport:
    """The transport for a device: a copy stream on CUDA, inline copies elsewhere."""
    return CopyStream(device) if device.type == "cuda" else InlineCopyStream()
