"""Transports that make a missing wait show."""

import torch

from fastvideo_lightning.offload.host.slab import HostMaster
from fastvideo_lightning.offload.streams import CopyStream
from fastvideo_lightning.offload.unit import DeviceSlot


class PoisoningStream(CopyStream):
    """Spoils a slot as soon as its reader says it is done: a later read shows as NaN."""

    def release(self, slot: DeviceSlot) -> None:
        # Behind autograd's back: a counted write is the forward's, and kept.
        slot.buffer.data.fill_(0xFF)
        slot.holder = None  # or a unit called twice in a row would find its bytes spoiled
        super().release(slot)


class SleepingStream(CopyStream):
    """Delays copies and kernels at random, so that a missing wait shows."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.random = torch.Generator().manual_seed(0)

    def sleep(self) -> None:
        torch.cuda._sleep(int(torch.randint(0, 3_000_000, (), generator=self.random)))

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        with torch.cuda.stream(self.stream):
            self.sleep()
        super().copy(master, slot)

    def wait(self, slot: DeviceSlot) -> None:
        if torch.randint(0, 2, (), generator=self.random):
            self.sleep()
        super().wait(slot)
