"""OffloadEngine: brings units to the device before they compute, in constant memory.

One engine serves one root module on one device, however many callbacks register units with it:
slots, copy stream and order are shared. It is told what to move and never chooses.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.profiler import record_function

from fastvideo_lightning.offload.device_memory import DeviceMemory
from fastvideo_lightning.offload.group import UnitGroup
from fastvideo_lightning.offload.order import UnitOrder
from fastvideo_lightning.offload.residents import READ_THREADS
from fastvideo_lightning.offload.slots import DeviceSlot, SlotRing
from fastvideo_lightning.offload.source import WeightSource
from fastvideo_lightning.offload.state import UnitState
from fastvideo_lightning.offload.stats import OffloadStats
from fastvideo_lightning.offload.store import HostStore
from fastvideo_lightning.offload.streams import Transport, make_transport
from fastvideo_lightning.offload.unit import OffloadUnit


class OffloadEngine:
    """Slots, a copy stream and three idempotent verbs: ``prefetch``, ``wait``, ``release``.

    Args:
        units: what to stream, in the order of execution; more may follow through ``attach``.
        device: where the units compute.
        num_slots: units with device memory at once, 2 or more for copies to overlap.
        transport: how copies are made; by default a copy stream on CUDA, inline copies elsewhere.
    """

    def __init__(
        self,
        units: Sequence[OffloadUnit] = (),
        device: torch.device | str = "cpu",
        *,
        num_slots: int = 2,
        transport: Transport | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.units: list[OffloadUnit] = []
        self.stats = OffloadStats()
        self.store = HostStore(self.device)
        self.memory = DeviceMemory(num_slots, self.device)
        self.transport = transport or make_transport(self.device)
        self.running = False
        self.before_refresh: list[Callable[[], None]] = []
        self._active: set[int] = set()
        self._order = UnitOrder()
        self._groups: list[UnitGroup] = []
        if units:
            self.attach(UnitGroup(units))

    def attach(self, group: UnitGroup, sources: Mapping[str, WeightSource] | None = None) -> None:
        """Take over units: read their bytes into host masters and make slots that fit the largest.

        Those that stream follow each other in the order given, and around again.

        Raises:
            RuntimeError: a tensor on meta has no source. Nothing stays attached then.
        """
        self.drain()
        new = [unit for unit in group.units if unit not in self.units]
        try:
            for unit in new:
                unit.plan(sources or {}, self.device)
            self.units.extend(new)
            with self.store.sharing(new), ThreadPoolExecutor(READ_THREADS) as pool:
                list(pool.map(lambda unit: unit.load(self.store), new))
            self._groups.append(group)
            streamed = [unit for unit in group.streamed if unit in new and not unit.transient]
            for i, unit in enumerate(streamed):
                unit.preferred_slot = i % self.memory.ring.num_slots
            self._order.add_cycle(streamed)
            self.memory.take_in(group, self.units)
        except BaseException:
            self.detach(new)
            raise

    def detach(self, units: Sequence[OffloadUnit] | None = None) -> None:
        """Leave ordinary host tensors in the units (all by default), give back what they held."""
        self.release_all()
        self.drain()
        leaving = [unit for unit in (self.units if units is None else units) if unit in self.units]
        for unit in leaving:
            self.memory.let_go(unit)
            unit.unload(self.store)
            self.units.remove(unit)
            self._order.remove(unit)
        self._groups = [g for g in self._groups if any(unit in self.units for unit in g.units)]
        self.memory.fit(self.units)

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
            with record_function("offload::miss" + unit.label):
                self.stats.misses += 1
                self._drop_all_but_from(unit)
                slot = self.memory.find(unit, evict=True)
                if slot is None:
                    unit.uses -= 1
                    raise self.memory.refusal(unit)
                self._fetch(unit, slot)
        assert unit.slot is not None
        with record_function("offload::wait" + unit.label):
            self.transport.wait(unit.slot)
            unit.show_slot()
            unit.state = UnitState.RESIDENT
        self._order.arrive(unit)
        self._prefetch_after(unit)

    def release(self, unit: OffloadUnit) -> None:
        """Say that a unit's call is over: its slot is free once the kernels so far are through."""
        if unit.state is not UnitState.RESIDENT:
            return
        unit.uses -= 1
        if unit.uses > 0:
            return
        slot = unit.slot
        assert slot is not None
        try:
            unit.keep_written(self.store)
        finally:
            with record_function("offload::release" + unit.label):
                unit.uses = 0
                unit.show_host()
                self.transport.release(slot)
                unit.state = UnitState.OFFLOADED
                if not self.memory.owns(slot):
                    unit.forget_slots()
            self._hand_over(slot)

    @property
    def idle(self) -> bool:
        """Whether no batch and no call of a model is in progress."""
        return not self.running and not self._active

    def begin_run(self) -> None:
        """Begin a batch: take over edits, prefetch the first units.

        Until ``end_run`` weights stay, so the last unit of a step prefetches the first of the next.
        """
        if self.running:
            return
        self._active.clear()
        self.refresh()
        self.running = True
        self._order.begin_run()
        if self._order.first is not None:
            self._start(self._order.first)
        for group in self._groups:  # where several share homes, the first of them comes first
            for resident in group.residents:
                self.prefetch(resident)

    def end_run(self) -> None:
        """End a batch, also after an exception: nothing is in flight, weights may be edited."""
        self.running = False
        self._order.end_run()
        self._active.clear()
        self.release_all()
        self.drain()

    def expect(self, unit: OffloadUnit, *, after_passes: int = 1) -> None:
        """Say that ``unit`` is needed after so many more calls of models with streamed blocks.

        It is prefetched while the last block of these calls computes; if its group has residents,
        they take over their homes on the way. What is expected and does not come costs a copy.
        """
        self._order.expect(unit, after_passes=after_passes)

    def enter(self, model: nn.Module, group: UnitGroup) -> None:
        """The model that holds a group is called; outside of a batch, take over edits."""
        if id(model) in self._active:  # it was interrupted in a way that no hook saw
            self._active.clear()
            self.release_all()
        if self.idle:
            self.refresh()
        self._active.add(id(model))
        self._order.begin_pass()
        self.stats.passes += 1
        if group.first is not None:
            self._start(group.first)

    def leave(self, model: nn.Module) -> None:
        """The model has returned or raised."""
        self._active.discard(id(model))

    def refresh(self, *, alone: bool = False) -> None:
        """Take over edits, with the other ranks or not; RuntimeError where a dtype changed."""
        for listener in self.before_refresh:
            listener()
        self.release_all(transient=False)  # a component may be in its call, around this one
        if any(unit.transient and unit.state is UnitState.PREFETCHING for unit in self.units):
            self.transport.drain()  # memory of its own must not go while a copy fills it
        self.memory.forget(self.units)
        at_rest = [unit for unit in self.units if unit.state is not UnitState.RESIDENT]
        if stale := [unit for unit in at_rest if unit.is_stale()]:
            self.drain()  # a host slab is written only when nothing copies from it
            for unit in stale:
                unit.revalidate(self.store)
            self.memory.fit(self.units)
        if not alone:
            self.transport.agree(self.units)

    def release_all(self, *, transient: bool = True) -> None:
        """Release every unit, as after an exception that passed the hooks by."""
        for unit in self.units:
            if unit.state is UnitState.RESIDENT and (transient or not unit.transient):
                unit.uses = 1
                self.release(unit)
            elif unit.uses and unit.state is not UnitState.RESIDENT:  # a wait was interrupted
                unit.uses = 0
                unit.show_host()

    def drain(self) -> None:
        """Wait for every copy in flight and forget what the slots hold."""
        self.transport.drain()
        self.memory.forget(self.units)

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
            with record_function("offload::prefetch" + unit.label):
                self.transport.copy(unit.slab, slot)
            self.stats.copies += 1
            self.stats.bytes_copied += unit.size_bytes
            if unit.slot is not None and unit.slot.holder is unit:
                unit.slot.holder = None
        slot.holder = unit
        unit.slot = slot
        unit.state = UnitState.PREFETCHING

    def _start(self, unit: OffloadUnit) -> None:
        """Prefetch from ``unit`` on, in place of what was expected, and its group's residents."""
        self._drop_all_but_from(unit)
        self.prefetch(unit)
        self._prefetch_after(unit)
        for resident in self._residents_of(unit):
            self.prefetch(resident)

    def _prefetch_after(self, unit: OffloadUnit) -> None:
        """Prefetch the successors that the other slots have room for."""
        for following in self._order.window(unit, self.ring.num_slots)[1:]:
            if following is unit or (not self.running and self._order.wraps(unit, following)):
                return
            self.prefetch(following)
            unit = following

    def _drop_all_but_from(self, unit: OffloadUnit) -> None:
        """Give up prefetches that were wrong: all but those of ``unit`` and of who follows it."""
        if not unit.transient and unit.home is None:
            self.memory.drop_prefetched(keep=self._order.window(unit, self.ring.num_slots))

    def _hand_over(self, home: DeviceSlot) -> None:
        """In a model's last pass, bring what is expected to live in a home next."""
        if self._order.expected is not None:
            for resident in self._residents_of(self._order.expected):
                if resident.home is home:
                    self.prefetch(resident)

    def _residents_of(self, unit: OffloadUnit) -> Sequence[OffloadUnit]:
        return next((g.residents for g in self._groups if unit is g.first), ())
