"""Device memory: a ring of slots for what streams, slots of their own for what stays.

Note [Resident slots]
A resident has a slot of its own. It is copied once and then only waited for: no other unit is
copied there. Two models that work one after the other, such as the experts of a two-expert
denoiser, share these slots: the n-th resident of each model uses the n-th slot. When one model is
in its last pass and the other one is known to follow, each slot is refilled as soon as its holder
has computed, so the copies run while the rest of the pass computes.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch

from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit, UnitGroup, UnitState


class SlotRing:
    """The slots of an engine, all of one size.

    Args:
        num_slots: how many units have device memory at the same time.
        device: where the slots lie.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        self.num_slots = num_slots
        self.device = device
        self.slots: list[DeviceSlot] = []

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot; 0 before the first ``resize``."""
        return self.slots[0].size_bytes if self.slots else 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots together."""
        return self.slot_bytes * len(self.slots)

    def resize(self, slot_bytes: int) -> None:
        """Make every slot ``slot_bytes`` long; 0 frees the memory. No slot may be in use."""
        if slot_bytes == self.slot_bytes:
            return
        self.slots.clear()  # first, so that old and new slots never lie side by side
        if slot_bytes:
            self.slots.extend(DeviceSlot(slot_bytes, self.device) for _ in range(self.num_slots))

    def find(self, unit: OffloadUnit, *, evict: bool) -> DeviceSlot | None:
        """A slot that ``unit`` may be copied to: its preferred one if it is idle, or else another.

        Args:
            unit: what is to be copied. In the regular order it always meets its preferred slot.
            evict: where none is idle, take one whose unit was prefetched and not used yet.

        Returns:
            The slot, or None where all hold units in use, or prefetched ones that must stay.
        """
        candidates = (self.slots[unit.preferred_slot], *self.slots)
        for may_evict in (False, True) if evict else (False,):
            for slot in candidates:
                if slot.is_free_for(unit, evict=may_evict):
                    return slot
        return None


class ResidentSlots:
    """Slots of an engine that residents keep, see Note [Resident slots].

    Args:
        device: where they lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slots: list[DeviceSlot] = []
        self._tenants: list[list[OffloadUnit]] = []

    @property
    def size_bytes(self) -> int:
        """Bytes of all these slots together."""
        return sum(slot.size_bytes for slot in self._slots)

    def __iter__(self) -> Iterator[DeviceSlot]:
        return iter(self._slots)

    def move_in(self, residents: Sequence[OffloadUnit]) -> None:
        """Give the n-th resident of a model the n-th slot, made or enlarged if need be.

        No resident may be in use.
        """
        for i, unit in enumerate(residents):
            if i == len(self._slots):
                self._slots.append(DeviceSlot(unit.size_bytes, self.device))
                self._tenants.append([])
            self._tenants[i].append(unit)
            self._fit(i)

    def move_out(self, unit: OffloadUnit) -> None:
        """Take a unit's slot from it; a slot that no unit uses any more is freed."""
        if unit.resident_slot is None:
            return
        i = self._slots.index(unit.resident_slot)
        unit.resident_slot = None
        self._tenants[i].remove(unit)
        if self._tenants[i]:
            self._fit(i)
        else:
            del self._slots[i], self._tenants[i]

    def resize(self) -> None:
        """Make every slot as large as the largest unit that uses it."""
        for i in range(len(self._slots)):
            self._fit(i)

    def _fit(self, i: int) -> None:
        size_bytes = max(unit.size_bytes for unit in self._tenants[i])
        if size_bytes != self._slots[i].size_bytes:
            for unit in self._tenants[i]:
                unit.forget_slots()
                unit.resident_slot = None
            self._slots[i] = DeviceSlot(0, self.device)  # the old memory goes first
            self._slots[i] = DeviceSlot(size_bytes, self.device)
        for unit in self._tenants[i]:
            unit.resident_slot = self._slots[i]


class DeviceMemory:
    """The slots of an engine: a ring for what streams, slots of their own for residents.

    A transient unit has memory of its own while it is in use. When it is fetched ahead of its call
    and fits, it borrows an idle slot of the ring instead and takes no further memory.

    Args:
        num_slots: slots of the ring.
        device: where they lie.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.device = device
        self.ring = SlotRing(num_slots, device)
        self.resident_slots = ResidentSlots(device)

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots, constant until units come or go."""
        return self.ring.size_bytes + self.resident_slots.size_bytes

    def take_in(self, group: UnitGroup, units: Sequence[OffloadUnit]) -> None:
        """Make room for a group beside all ``units``."""
        self.resident_slots.move_in(group.residents)
        self.fit(units)

    def let_go(self, unit: OffloadUnit) -> None:
        """Keep no memory for a unit."""
        self.resident_slots.move_out(unit)

    def fit(self, units: Iterable[OffloadUnit]) -> None:
        """Make the slots as large as the units that meet them; no unit may be in use."""
        units = list(units)
        largest = self.ring_bytes_for(units)
        if largest != self.ring.slot_bytes:
            for unit in units:
                if unit.resident_slot is None:
                    unit.forget_slots()
            self.ring.resize(largest)
        self.resident_slots.resize()

    def ring_bytes_for(self, units: Iterable[OffloadUnit]) -> int:
        """Bytes of the largest unit that streams."""
        return max(
            (u.size_bytes for u in units if u.resident_slot is None and not u.transient), default=0
        )

    def find(self, unit: OffloadUnit, *, evict: bool) -> DeviceSlot | None:
        """A slot that the unit may be copied to now; None where other units occupy all of them.

        Args:
            unit: what is to be copied.
            evict: take a slot whose unit was prefetched and not used yet, where none is idle.
        """
        if unit.transient:
            if unit.slot is not None and unit.slot.holder is unit:  # its last call left it there
                return unit.slot
            borrowed = None if evict else self._lend(unit)
            return borrowed or DeviceSlot(unit.size_bytes, self.device)
        if unit.resident_slot is None:
            slot = self.ring.find(unit, evict=evict)
        else:
            slot = unit.resident_slot if unit.resident_slot.is_free_for(unit, evict=evict) else None
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
        return slot in self.ring.slots or slot in self.resident_slots

    def empty(self, unit: OffloadUnit) -> None:
        """Let a unit that is not in use have no slot."""
        if unit.slot is not None:
            unit.slot.holder = None
        unit.slot = None
        unit.state = UnitState.OFFLOADED

    def forget(self, units: Iterable[OffloadUnit]) -> None:
        """Forget what slots hold, but for units in use. Copies in flight precede later ones."""
        for unit in units:
            if unit.state is UnitState.PREFETCHING:
                self.empty(unit)
        for slot in (*self.ring.slots, *self.resident_slots):
            if slot.holder is not None and slot.holder.state is UnitState.OFFLOADED:
                slot.holder = None

    def slots_of(
        self, units: Sequence[OffloadUnit], residents: Sequence[OffloadUnit]
    ) -> tuple[DeviceSlot, ...] | None:
        """Slots of ``units``, if no other is prefetched and all ``residents`` are in theirs."""
        holders = [slot.holder for slot in self.ring.slots if slot.holder is not None]
        prefetched = {unit for unit in holders if unit.state is UnitState.PREFETCHING}
        are_in_slots = all(
            unit.resident_slot is not None and unit.resident_slot.holder is unit
            for unit in residents
        )
        if prefetched != set(units) or not are_in_slots:
            return None
        return tuple(unit.slot for unit in units if unit.slot is not None)

    def drop_prefetched(self, *, keep: Sequence[OffloadUnit]) -> None:
        """Give up what was prefetched into the ring and is not used yet, but for ``keep``."""
        for slot in self.ring.slots:
            unit = slot.holder
            if unit is not None and unit not in keep and unit.state is UnitState.PREFETCHING:
                self.empty(unit)

    def check(self, units: Iterable[OffloadUnit]) -> None:
        """Assert that the ring fits its units, and that each unit's slot and state agree."""
        for unit in units:
            held = unit.slot is not None and unit.slot.holder is unit
            assert held or unit.state is UnitState.OFFLOADED, f"{unit.fqn} has no slot"
            assert (unit.uses > 0) == (unit.state is UnitState.RESIDENT), f"{unit.fqn} is in use"
        assert self.ring.size_bytes == self.ring.num_slots * self.ring_bytes_for(units)
        slots = (*self.ring.slots, *self.resident_slots)
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
