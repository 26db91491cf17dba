"""OffloadEngine: brings units to the device before they compute, in constant memory.

One engine serves one root module on one device, however many callbacks register units with it:
slots, copy stream and order are shared. It is told what to move and never chooses.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from fastvideo_lightning.offload.calls import Calls, OpenCall, SharesUnits, in_turn
from fastvideo_lightning.offload.compression import compress
from fastvideo_lightning.offload.host.mapped import PrivateMappings
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.order import UnitOrder
from fastvideo_lightning.offload.profiling import phase, span
from fastvideo_lightning.offload.residents import READ_THREADS, move
from fastvideo_lightning.offload.results import apart_from
from fastvideo_lightning.offload.slots import DeviceMemory, SlotRing
from fastvideo_lightning.offload.streams import Transport, make_transport
from fastvideo_lightning.offload.tensors.autograd import (
    in_backward,
    is_recorded,
    lasting,
    outside_transforms,
)
from fastvideo_lightning.offload.tensors.bindings import split_ties
from fastvideo_lightning.offload.tensors.shown import is_lent
from fastvideo_lightning.offload.tensors.sources import WeightSource
from fastvideo_lightning.offload.timing import DeviceClock, TimedTransport
from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit, UnitGroup, UnitState


@dataclass
class OffloadStats:
    """What an engine has done since it was made.

    Attributes:
        copies: units copied to the device.
        bytes_copied: bytes of these copies.
        misses: waits for a unit that nobody had prefetched.
        passes: calls of models with streamed blocks.
    """

    copies: int = 0
    bytes_copied: int = 0
    misses: int = 0
    passes: int = 0


Args = tuple[object, ...]


class OffloadEngine:
    """What moves units: ``prefetch``, ``wait``, ``release``, in runs and passes; all idempotent.

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
        # Surrounds the loading of units; where ranks share memory, it is collective.
        self.loading_together: Callable[[Sequence[OffloadUnit]], AbstractContextManager[object]] = (
            self.store.holding_some
        )
        self.memory = DeviceMemory(num_slots, self.device)
        self.transport = transport or make_transport(self.device)
        self.order = UnitOrder()
        self.running = False
        self.groups: list[UnitGroup] = []
        self.before_refresh: list[Callable[[], None]] = []
        self.before_end: list[Callable[[], None]] = []
        self.lanes: SharesUnits | None = None
        self.calls = Calls()
        if units:
            self.attach(UnitGroup(units))

    @in_turn
    def attach(self, group: UnitGroup, sources: Mapping[str, WeightSource] | None = None) -> None:
        """Take over units: read their bytes into host masters and make slots that fit the largest.

        Those that stream follow each other in the order given, and around again.

        Raises:
            RuntimeError: a tensor on meta has no source. Nothing stays attached then.
        """
        self.drain()
        new = [unit for unit in group.units if unit not in self.units]
        self.store.mappings = PrivateMappings()
        try:
            with phase("lay units out"):
                for unit in new:
                    unit.plan(sources or {}, self.device)
            self.units.extend(new)
            loading = phase("load and register units")
            with self.loading_together(new), loading, ThreadPoolExecutor(READ_THREADS) as pool:
                list(pool.map(lambda unit: unit.load(self.store), new))
            compressed = [unit for unit in new if unit.compressed]
            compress(compressed, self.store, self.transport, self.device)
            self.groups.append(group)
            streamed = [unit for unit in group.streamed if unit in new and not unit.transient]
            self._give_slots(streamed)
            self.order.add_cycle(streamed)
            with phase("make slots"):
                self.memory.take_in(group, self.units)
        except BaseException:
            self.detach(new)
            raise

    @in_turn
    def detach(self, units: Sequence[OffloadUnit] | None = None) -> None:
        """Leave ordinary host tensors in the units (all by default), give back what they held."""
        self.release_all()
        self.drain()
        leaving = [unit for unit in (self.units if units is None else units) if unit in self.units]
        for unit in leaving:
            self.memory.let_go(unit)
            unit.unload(self.store)
            for binding in split_ties(unit.bindings):  # edits may lie elsewhere
                move(binding, torch.device("cpu"))
            self.units.remove(unit)
            self.order.remove(unit)
        self.groups = [g for g in self.groups if any(unit in self.units for unit in g.units)]
        self.memory.fit(self.units)

    @property
    def idle(self) -> bool:
        """Whether no batch and no call of a model is in progress."""
        return not self.running and not self.calls.keep_weights

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
            RuntimeError: the call changed the unit's tensors in a way that cannot be kept.
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
        """Release every unit, as after an exception that the hooks did not see."""
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
        """Make sure that the calls so far computed with weights that were read in full.

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
        """Bytes of device memory that all slots take, constant until units come or go."""
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
            self.stats.bytes_copied += unit.copied_bytes
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
        """Give up wrong prefetches: all but those of ``unit`` and of the units that follow it."""
        if not unit.transient and unit.resident_slot is None:
            self.memory.drop_prefetched(keep=self.order.window(unit, self.ring.num_slots))

    def _hand_over(self, slot: DeviceSlot) -> None:
        """In a model's last pass, prefetch the next model's resident into a resident's slot."""
        if self.order.expected is not None:
            for resident in self._residents_of(self.order.expected):
                if resident.resident_slot is slot:
                    self.prefetch(resident)

    def _residents_of(self, unit: OffloadUnit) -> Sequence[OffloadUnit]:
        return next((g.residents for g in self.groups if unit is g.first), ())

    @in_turn
    def begin_run(self) -> None:
        """Begin a batch: take over edits, prefetch the first units.

        Until ``end_run`` weights stay, so the last unit of a step prefetches the first of the next.
        """
        if self.running:
            return
        self.refresh()
        self.running = True
        self.order.begin_run()
        if self.order.first is not None:
            self._start(self.order.first)
        for group in self.groups:  # where groups share slots, the first group's come first
            for resident in group.residents:
                self.prefetch(resident)

    @in_turn
    def end_run(self) -> None:
        """End a batch, also after an exception: nothing is in flight, weights may be edited."""
        for listener in self.before_end:
            listener()
        self.running = False
        self.order.end_run()
        self.release_all()
        self.drain()

    def expect(self, unit: OffloadUnit, *, after_passes: int = 1) -> None:
        """Say that ``unit`` is needed after ``after_passes`` more calls of streamed models.

        It is prefetched while the last block of these calls computes; if its group has residents,
        they take over their slots on the way. A unit that is expected and not called costs a copy.
        """
        self.order.expect(unit, after_passes=after_passes)

    def begin_call(self, call: OpenCall) -> None:
        """Wait for this thread's turn; release the units of calls that were interrupted before.

        Raises:
            RuntimeError: the block's model is in a call on another thread, and waits there.
        """
        self.calls.begin(call)
        self._abandon(self.calls.over())

    def end_call(self, called: object) -> None:
        """Note that a call has returned or raised, or was interrupted."""
        self._abandon(self.calls.within(called))

    def finish_call(self, called: object) -> None:
        """Note that a call is over; outside of a batch its result is valid when this returns.

        Raises:
            RuntimeError: a file could not be read on its way to the device.
        """
        self.end_call(called)
        if self.idle:
            self.settle()

    def finish_unit(self, called: object, output: object) -> object:
        """``finish_call`` for a unit's module or part; results in its slot become copies."""
        try:
            unit = self.calls.last_unit(called)
            if unit is not None and unit.memory is not None and not unit.recorded:
                output = apart_from(unit.memory, output)
        finally:
            self.finish_call(called)
        return output

    def _abandon(self, calls: Sequence[OpenCall]) -> None:
        """Release the units of calls that are over, the latest first."""
        for call in calls:
            unit = call.unit
            try:
                if unit is not None and self.calls.count(unit) == 1:
                    with outside_transforms():
                        self._let_go(unit)
            finally:
                self.calls.end(call)

    def begin_unit(
        self, unit: OffloadUnit, called: object, args: Args, kwargs: dict[str, object]
    ) -> None:
        """Bring a unit whose module, or a part of it, is called; where autograd records, as a copy.

        Args:
            unit: what is needed.
            called: what is called, see ``OpenCall``.
            args: of the call.
            kwargs: of the call.
        """
        call = OpenCall(called, unit)
        self.begin_call(call)
        is_in_use, alone = self.calls.count(unit) > 1, unit.transient
        is_cast = alone and not is_in_use and unit.shown.changed()  # by a pipeline, in its run
        if is_cast or (self.idle and not (alone and is_in_use) and not in_backward()):
            with outside_transforms():
                self.refresh(alone=alone)
        call.keeps_weights = not alone
        if not is_in_use:
            unit.recorded = is_recorded(unit.bindings, args, kwargs)
            unit.inputs = args, kwargs
        with outside_transforms():
            self.wait(unit)

    def enter(self, model: nn.Module, on_call: Callable[[], None] = lambda: None) -> None:
        """A model with streamed blocks is called; outside of a batch, take over edits.

        Args:
            model: what is called.
            on_call: called when it is this thread's turn, before edits are taken over.
        """
        call = OpenCall(model)
        self.begin_call(call)
        with outside_transforms():
            on_call()
            if self.idle:
                self.refresh()
        call.keeps_weights = True
        self.order.begin_pass(joins=self.lanes is not None and self.calls.num_open(model) > 1)
        self.stats.passes += 1

    def start(self, group: UnitGroup) -> None:
        """Prefetch what a call needs first: the first units of its group, and its residents."""
        if group.first is not None:
            self._start(group.first)

    def slots_at_start(self, group: UnitGroup) -> tuple[DeviceSlot, ...] | None:
        """The slots of a pass's first units; None where it does not begin as the last one ended.

        Passes that begin alike, and are expected to end alike, use the same addresses, so a graph
        of one can stand for the others.
        """
        regular = (
            self.running
            and self.order.expected is None
            and len(group.streamed) % self.ring.num_slots == 0
            and self.order.closes(group.streamed)
        )
        ahead = self.order.window(group.streamed[0], self.ring.num_slots) if group.streamed else ()
        return self.memory.slots_of(ahead[:-1], group.residents) if regular else None

    def repeat(self, group: UnitGroup) -> None:
        """Take note of a pass over a group that a CUDA graph has replayed."""
        for unit in group.streamed:
            self.order.arrive(unit)
            self.stats.copies += 1
            self.stats.bytes_copied += unit.copied_bytes

    def leave(self, model: nn.Module, group: UnitGroup) -> None:
        """The model has returned or raised; if its pass needed all units, that is their order."""
        seen = self.order.seen(group.streamed)
        if seen == list(group.streamed) or len(seen) < len(group.streamed):
            group.candidate_order = ()
        elif seen == group.candidate_order:
            group.streamed, group.candidate_order = seen, ()
            self._give_slots(seen)
            self.order.follow(seen)
        else:
            group.candidate_order = seen
        self.finish_call(model)

    def refresh(self, *, alone: bool = False) -> None:
        """Take over edits, with the other ranks or not; RuntimeError where a dtype changed."""
        for listener in self.before_refresh:
            listener()
        self.release_all(transient=False)  # a component's call may be around this one
        if any(unit.transient and unit.state is UnitState.PREFETCHING for unit in self.units):
            self.transport.drain()  # memory of its own must not go while a copy fills it
        self.memory.forget(self.units)
        at_rest = [unit for unit in self.units if unit.state is not UnitState.RESIDENT]
        with phase("look for edits"):
            stale = [unit for unit in at_rest if unit.is_stale()]
        if stale:
            self.drain()  # a host slab is written only when nothing copies from it
            lent = is_lent()
            with lasting():
                for unit in stale:
                    (unit.leave_lent if lent else unit.revalidate)(self.store)
            self.memory.fit(self.units)
        if not alone:
            self.transport.agree(self.units, [*self.memory.ring.slots, *self.memory.resident_slots])

    def _give_slots(self, units: Sequence[OffloadUnit]) -> None:
        for i, unit in enumerate(units):
            unit.preferred_slot = i % self.memory.ring.num_slots

    def _start(self, unit: OffloadUnit) -> None:
        """Prefetch ``unit``, the units after it and its group's residents, and no others."""
        self._drop_all_but_from(unit)
        self.prefetch(unit)
        self._prefetch_after(unit)
        for resident in self._residents_of(unit):
            self.prefetch(resident)
