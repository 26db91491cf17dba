"""UnitMover: the three verbs that move units, and the slots and the order that they work with."""

from collections.abc import Sequence

import torch

from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.order import UnitOrder
from fastvideo_lightning.offload.profiling import span
from fastvideo_lightning.offload.slots import DeviceMemory, SlotRing
from fastvideo_lightning.offload.stats import OffloadStats
from fastvideo_lightning.offload.streams import Transport, make_transport
from fastvideo_lightning.offload.timing import DeviceClock, TimedTransport
from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit, UnitGroup, UnitState


class UnitMover:
    """Slots, a copy stream and three idempotent verbs: ``prefetch``, ``wait``, ``release``.

    Args:
        device: where the units compute.
        num_slots: units with device memory at once, 2 or more for copies to overlap.
        transport: how copies are made; by default a copy stream on CUDA, inline copies elsewhere.
    """

    def __init__(
        self, device: torch.device | str, *, num_slots: int, transport: Transport | None
    ) -> None:
        self.device = torch.device(device)
        self.units: list[OffloadUnit] = []
        self.stats = OffloadStats()
        self.store = HostStore(self.device)
        self.memory = DeviceMemory(num_slots, self.device)
        self.transport = transport or make_transport(self.device)
        self.order = UnitOrder()
        self.running = False
        self.groups: list[UnitGroup] = []

    def prefetch(self, unit: OffloadUnit) -> None:
        """Start copying a unit into a slot, unless it is there, or no slot is idle."""
        if unit.state is UnitState.OFFLOADED:
            slot = self.memory.find(unit, evict=False)
            if slot is not None:
                self._fetch(unit, slot)

    def wait(self, unit: OffloadUnit) -> None:
        """Make the compute stream wait for a unit and let its module see the device tensors.

        A unit that nobody prefetched is fetched now: any order of execution is right, only slower.

        Raises:
            RuntimeError: every slot is in use by a module that has not returned.
        """
        unit.uses += 1
        if unit.state is UnitState.RESIDENT:
            return
        if unit.state is UnitState.OFFLOADED:
            with span("offload::miss" + unit.label):
                self.stats.misses += 1
                self._drop_all_but_from(unit)
                slot = self.memory.find(unit, evict=True)
                if slot is None:
                    unit.uses -= 1
                    raise self.memory.refusal(unit)
                self._fetch(unit, slot)
        assert unit.slot is not None
        if unit.transient and self.running:
            self.transport.settle()  # what the models before it computed is about to be used
        with span("offload::wait" + unit.label):
            self.transport.wait(unit.slot)
            unit.show_slot()
            unit.state = UnitState.RESIDENT
        self.order.arrive(unit)
        self._prefetch_after(unit)

    def release(self, unit: OffloadUnit) -> None:
        """Say that a unit's call is over: its slot is free once the kernels so far are through.

        Raises:
            RuntimeError: the call did to the unit's tensors what no unit can keep.
        """
        if unit.state is not UnitState.RESIDENT:
            return
        unit.uses -= 1
        if unit.uses > 0:
            return
        slot = unit.slot
        assert slot is not None
        holds_master = False
        try:
            holds_master = unit.keep_written(self.store)
        finally:
            with span("offload::release" + unit.label):
                unit.uses = 0
                unit.show_host()
                self.transport.release(slot)
                unit.state = UnitState.OFFLOADED
                if not holds_master:  # the next call brings what the host has now
                    slot.holder = None
                if not self.memory.owns(slot):
                    unit.forget_slots()
            self._hand_over(slot)

    def release_all(self, *, transient: bool = True) -> None:
        """Release every unit, as after an exception that passed the hooks by."""
        for unit in self.units:
            if transient or not unit.transient or unit.state is not UnitState.RESIDENT:
                self._let_go(unit)

    def _let_go(self, unit: OffloadUnit) -> None:
        """Release a unit, however many calls have brought it."""
        if unit.state is UnitState.RESIDENT:
            unit.uses = 1
            self.release(unit)
        elif unit.uses:  # a wait was interrupted
            unit.uses = 0
            unit.show_host()

    def drain(self) -> None:
        """Wait for every copy in flight and forget what the slots hold."""
        self.transport.drain()
        self.memory.forget(self.units)

    def use_transport(self, transport: Transport) -> None:
        """Make copies another way from here on; what is timed stays timed."""
        self.drain()
        if isinstance(self.transport, TimedTransport):
            self.transport.innermost.transport = transport
        else:
            self.transport = transport

    def time_waits(self, clock: DeviceClock) -> TimedTransport:
        """Note how long computing waits for copies, until ``stop_timing``; several may at once."""
        timed = TimedTransport(self.transport, clock)
        self.transport = timed
        return timed

    def stop_timing(self, timed: TimedTransport) -> None:
        """End what ``time_waits`` began; a second time is no error."""
        if self.transport is timed:
            self.transport = timed.transport
        elif isinstance(self.transport, TimedTransport):
            self.transport.forget(timed)

    def settle(self) -> None:
        """Make sure that all weights of the calls so far were weights.

        Raises:
            RuntimeError: a file could not be read on its way to the device.
        """
        try:
            self.transport.settle()
        except RuntimeError:
            self.drain()
            raise

    @property
    def ring(self) -> SlotRing:
        """The slots that streamed units take turns in."""
        return self.memory.ring

    @property
    def device_bytes(self) -> int:
        """Device memory of ring and homes in bytes, constant until units come or go."""
        return self.memory.size_bytes

    def check(self) -> None:
        """Assert the invariants: states, slots and what the modules show agree."""
        self.memory.check(self.units)
        for unit in self.units:
            unit.check()

    def _fetch(self, unit: OffloadUnit, slot: DeviceSlot) -> None:
        assert unit.slab is not None, f"{unit.fqn} is not attached"
        if slot.holder is not unit:
            with span("offload::prefetch" + unit.label):
                self.transport.copy(unit.slab, slot)
            self.stats.copies += 1
            self.stats.bytes_copied += unit.size_bytes
            if unit.slot is not None and unit.slot.holder is unit:
                unit.slot.holder = None
        slot.holder = unit
        unit.slot = slot
        unit.state = UnitState.PREFETCHING

    def _prefetch_after(self, unit: OffloadUnit) -> None:
        """Prefetch the successors that the other slots have room for."""
        for following in self.order.window(unit, self.ring.num_slots)[1:]:
            if following is unit or (not self.running and self.order.wraps(unit, following)):
                return
            self.prefetch(following)
            unit = following

    def _drop_all_but_from(self, unit: OffloadUnit) -> None:
        """Give up prefetches that were wrong: all but those of ``unit`` and of who follows it."""
        if not unit.transient and unit.home is None:
            self.memory.drop_prefetched(keep=self.order.window(unit, self.ring.num_slots))

    def _hand_over(self, home: DeviceSlot) -> None:
        """In a model's last pass, bring what is expected to live in a home next."""
        if self.order.expected is not None:
            for resident in self._residents_of(self.order.expected):
                if resident.home is home:
                    self.prefetch(resident)

    def _residents_of(self, unit: OffloadUnit) -> Sequence[OffloadUnit]:
        return next((g.residents for g in self.groups if unit is g.first), ())
