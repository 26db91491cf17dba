"""DeviceMemory: where units may lie on the device, and which of them does."""

from collections.abc import Iterable, Sequence

import torch

from fastvideo_lightning.offload.group import UnitGroup
from fastvideo_lightning.offload.homes import Homes
from fastvideo_lightning.offload.slots import DeviceSlot, SlotRing
from fastvideo_lightning.offload.state import UnitState
from fastvideo_lightning.offload.unit import OffloadUnit


class DeviceMemory:
    """The slots of an engine: a ring for what streams, homes for what stays.

    A transient unit has memory of its own while it is in use. When it is fetched ahead of its call
    and fits, it borrows an idle slot of the ring instead and takes no further memory.

    Args:
        num_slots: slots of the ring.
        device: where they lie.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.device = device
        self.ring = SlotRing(num_slots, device)
        self.homes = Homes(device)

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots, constant until units come or go."""
        return self.ring.size_bytes + self.homes.size_bytes

    def take_in(self, group: UnitGroup, units: Sequence[OffloadUnit]) -> None:
        """Make room for a group beside all ``units``."""
        self.homes.move_in(group.residents)
        self.fit(units)

    def let_go(self, unit: OffloadUnit) -> None:
        """Keep no memory for a unit."""
        self.homes.move_out(unit)

    def fit(self, units: Iterable[OffloadUnit]) -> None:
        """Make the slots as large as the units that meet them; no unit may be in use."""
        units = list(units)
        largest = self.ring_bytes_for(units)
        if largest != self.ring.slot_bytes:
            for unit in units:
                if unit.home is None:
                    unit.forget_slots()
            self.ring.resize(largest)
        self.homes.resize()

    def ring_bytes_for(self, units: Iterable[OffloadUnit]) -> int:
        """Bytes of the largest unit that streams."""
        return max((u.size_bytes for u in units if u.home is None and not u.transient), default=0)

    def find(self, unit: OffloadUnit, *, evict: bool) -> DeviceSlot | None:
        """A slot that the unit may be copied to now; None where others use or want them all.

        Args:
            unit: what is to be copied.
            evict: take a slot whose unit was prefetched and not used yet, where none is idle.
        """
        if unit.transient:
            if unit.slot is not None and unit.slot.holder is unit:  # its last call left it there
                return unit.slot
            borrowed = None if evict else self._lend(unit)
            return borrowed or DeviceSlot(unit.size_bytes, self.device)
        if unit.home is None:
            slot = self.ring.find(unit, evict=evict)
        else:
            slot = unit.home if unit.home.is_free_for(unit, evict=evict) else None
        if slot is not None and slot.holder not in (None, unit):
            self.empty(slot.holder)
        return slot

    def refusal(self, unit: OffloadUnit) -> RuntimeError:
        """What to raise where ``find`` has no slot for a unit that is called."""
        users = ", ".join(slot.holder.fqn for slot in self.ring.slots if slot.holder)
        return RuntimeError(
            f"{unit.fqn} is called while every slot is in use ({users}). Blocks that call each "
            f"other need num_slots={self.ring.num_slots + 1}."
        )

    def owns(self, slot: DeviceSlot) -> bool:
        """Whether a slot outlives its unit's call."""
        return slot in self.ring.slots or slot in self.homes

    def empty(self, unit: OffloadUnit) -> None:
        """Let a unit that is not in use have no slot."""
        if unit.slot is not None:
            unit.slot.holder = None
        unit.slot = None
        unit.state = UnitState.OFFLOADED

    def forget(self, units: Iterable[OffloadUnit]) -> None:
        """Nothing that is not in use counts as copied. Copies in flight precede later ones."""
        for unit in units:
            if unit.state is UnitState.PREFETCHING:
                self.empty(unit)
        for slot in (*self.ring.slots, *self.homes):
            if slot.holder is not None and slot.holder.state is UnitState.OFFLOADED:
                slot.holder = None

    def places_of(
        self, units: Sequence[OffloadUnit], residents: Sequence[OffloadUnit]
    ) -> tuple[DeviceSlot, ...] | None:
        """Slots of ``units``, if they and no others are prefetched, ``residents`` being at home."""
        holders = [slot.holder for slot in self.ring.slots if slot.holder is not None]
        prefetched = {unit for unit in holders if unit.state is UnitState.PREFETCHING}
        at_home = all(unit.home is not None and unit.home.holder is unit for unit in residents)
        if prefetched != set(units) or not at_home:
            return None
        return tuple(unit.slot for unit in units if unit.slot is not None)

    def drop_prefetched(self, *, keep: Sequence[OffloadUnit]) -> None:
        """Give up what was prefetched into the ring and is not used yet, but for ``keep``."""
        for slot in self.ring.slots:
            unit = slot.holder
            if unit is not None and unit not in keep and unit.state is UnitState.PREFETCHING:
                self.empty(unit)

    def check(self, units: Iterable[OffloadUnit]) -> None:
        """Assert that the ring has the size its units need, and that each is where it says."""
        for unit in units:
            held = unit.slot is not None and unit.slot.holder is unit
            assert held or unit.state is UnitState.OFFLOADED, f"{unit.fqn} has no slot"
            assert (unit.uses > 0) == (unit.state is UnitState.RESIDENT), f"{unit.fqn} is in use"
        assert self.ring.size_bytes == self.ring.num_slots * self.ring_bytes_for(units)
        slots = (*self.ring.slots, *self.homes)
        holders = [slot.holder for slot in slots if slot.holder is not None]
        assert len(set(holders)) == len(holders), "a unit is in two slots"

    def _lend(self, unit: OffloadUnit) -> DeviceSlot | None:
        """An idle slot of the ring; never the last one, which streaming cannot do without."""
        holders = [slot.holder for slot in self.ring.slots if slot.holder is not None]
        lent = sum(h.transient and h.state is not UnitState.OFFLOADED for h in holders)
        if lent + 1 >= self.ring.num_slots or unit.size_bytes > self.ring.slot_bytes:
            return None
        slot = self.ring.find(unit, evict=False)
        if slot is not None and slot.holder not in (None, unit):
            self.empty(slot.holder)
        return slot
