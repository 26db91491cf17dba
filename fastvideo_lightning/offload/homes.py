"""Homes: device memory that is kept for units which stay.

Note [Homes]
A unit at home is copied once and then only waited for: no other unit's copy ever takes its place.
Two models that work one after the other, such as the experts of a two-expert denoiser, share their
homes: the n-th resident of each has the n-th home. When one model is in its last pass and the other
one is known to follow, each home changes hands as soon as its holder has computed, so that the
copies run under what is left of the pass.
"""

from collections.abc import Iterator, Sequence

import torch

from fastvideo_lightning.offload.slots import DeviceSlot
from fastvideo_lightning.offload.unit import OffloadUnit


class Homes:
    """The homes of an engine, see Note [Homes].

    Args:
        device: where they lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slots: list[DeviceSlot] = []
        self._tenants: list[list[OffloadUnit]] = []

    @property
    def size_bytes(self) -> int:
        """Bytes of all homes together."""
        return sum(slot.size_bytes for slot in self._slots)

    def __iter__(self) -> Iterator[DeviceSlot]:
        return iter(self._slots)

    def move_in(self, residents: Sequence[OffloadUnit]) -> None:
        """Give the n-th resident of a model the n-th home, made or enlarged if need be.

        No resident may be in use.
        """
        for i, unit in enumerate(residents):
            if i == len(self._slots):
                self._slots.append(DeviceSlot(unit.size_bytes, self.device))
                self._tenants.append([])
            self._tenants[i].append(unit)
            self._fit(i)

    def move_out(self, unit: OffloadUnit) -> None:
        """Take a unit's home from it; a home without units is given back."""
        if unit.home is None:
            return
        i = self._slots.index(unit.home)
        unit.home = None
        self._tenants[i].remove(unit)
        if self._tenants[i]:
            self._fit(i)
        else:
            del self._slots[i], self._tenants[i]

    def resize(self) -> None:
        """Make every home as large as its largest unit is now."""
        for i in range(len(self._slots)):
            self._fit(i)

    def _fit(self, i: int) -> None:
        size_bytes = max(unit.size_bytes for unit in self._tenants[i])
        if size_bytes != self._slots[i].size_bytes:
            for unit in self._tenants[i]:
                unit.forget_slots()
                unit.home = None
            self._slots[i] = DeviceSlot(0, self.device)  # the old memory goes first
            self._slots[i] = DeviceSlot(size_bytes, self.device)
        for unit in self._tenants[i]:
            unit.home = self._slots[i]
