"""OffloadUnit: what moves as one, its states, and the slot that holds it.

A unit is a block, or a whole component, whose tensors share one slab on the host and one slot on
the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import torch
from torch import nn

from fastvideo_lightning.offload.host.mapped import find_in_files
from fastvideo_lightning.offload.host.slab import HostMaster, HostMemory
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.tensors.autograd import kept_views, lasting, route_gradient_to
from fastvideo_lightning.offload.tensors.bindings import (
    Registry,
    Shown,
    TensorBinding,
    show,
    split_ties,
)
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.tensors.leaves import (
    fill,
    find_leaves,
    leaves_of,
    rebuild,
)
from fastvideo_lightning.offload.tensors.shown import ShownTensors
from fastvideo_lightning.offload.tensors.sources import (
    FileBytes,
    WeightSource,
    file_position,
    find_source,
    source_spec,
)
from fastvideo_lightning.offload.watching import Watch


class UnitState(Enum):
    """Where a unit's bytes are. The engine alone changes it.

    OFFLOADED: the host slab holds the bytes, the unit claims no device memory; its module shows
        host tensors.
    PREFETCHING: the host slab holds them and a copy into one slot is in flight or done; its module
        still shows host tensors.
    RESIDENT: the host slab holds them and one slot does; its module shows the slot.
    """

    OFFLOADED = "offloaded"
    PREFETCHING = "prefetching"
    RESIDENT = "resident"


class DeviceSlot:
    """One piece of device memory that holds one unit at a time.

    Args:
        size_bytes: length of the buffer in bytes.
        device: where it lies.

    Attributes:
        buffer: ``[size_bytes] uint8``.
        holder: the unit whose bytes are in the buffer or on their way; None where the buffer may be
            overwritten.
    """

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # an inference tensor has no version to compare
            self.buffer = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.holder: OffloadUnit | None = None
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = (torch.cuda.Event(), torch.cuda.Event())
            # The allocator may hand out memory that earlier kernels of this stream still read.
            torch.cuda.current_stream(device).record_event(self._events[1])

    @property
    def size_bytes(self) -> int:
        """Length of the buffer in bytes."""
        return self.buffer.numel()

    def is_free_for(self, unit: "OffloadUnit", *, evict: bool) -> bool:
        """Whether ``unit`` may be copied here; with ``evict``, also over a prefetched unit."""
        if self.holder in (None, unit) or self.holder.state is UnitState.OFFLOADED:
            return True
        return evict and self.holder.state is UnitState.PREFETCHING

    def events(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """``(ready, free)``, see Note [Slots and events]; a slot on the CPU has none."""
        assert self._events is not None, "a slot outside CUDA has no events"
        return self._events


class Entrance(NamedTuple):
    """An attribute that a module has while its unit is away, see Note [Entrances]."""

    attributes: dict[str, object]
    name: str
    call: object


class OffloadUnit:
    """The tensors of one module, moved by one copy.

    Args:
        fqn: name of the module, seen from the root.
        module: the module whose call needs the tensors.
        bindings: its tensors.
        transient: it has device memory of its own while it is in use, in place of a ring's slot.
        host_memory: what kind of memory the host master is.
        compressed: its bytes are to be coded, see Note [Coded units].

    Attributes:
        state: see ``UnitState``.
        slot: the slot that holds the unit's bytes, or None.
        resident_slot: the slot that is kept for it, or None; see Note [Resident slots].
        uses: calls in progress.
        recorded: autograd records its call; see Note [Backward through streamed blocks].
        sources: until ``load``, what each tensor is read from; None where it has its bytes.
        hosts: the tensors on the host, one for each of ``bindings``.
        shown: these tensors where the module shows them between its calls.
        entrances: how parts of the module are called by themselves.
        inputs: what the module was called with, during a call.
        memory: ``[bytes] uint8``, what the module's tensors lie in during a call; else None.
    """

    def __init__(
        self,
        fqn: str,
        module: nn.Module,
        bindings: list[TensorBinding],
        *,
        transient: bool = False,
        host_memory: HostMemory = HostMemory.AUTO,
        compressed: bool = False,
    ) -> None:
        self.fqn = fqn
        self.module = module
        self.bindings = bindings
        self.transient = transient
        self.host_memory = host_memory
        self.compressed = compressed
        self.state = UnitState.OFFLOADED
        self.slot: DeviceSlot | None = None
        self.preferred_slot = 0
        self.resident_slot: DeviceSlot | None = None
        self.uses = 0
        self.recorded = False
        self.label = f" {fqn}"
        self.layout = SlabLayout(())
        self.slab: HostMaster | None = None
        self.sources: list[WeightSource | FileBytes | None] = []
        self.hosts: list[torch.Tensor] = []
        self._shown: dict[DeviceSlot, Shown] = {}
        self.shown = ShownTensors([])
        self.entrances: list[Entrance] = []
        self.inputs: object = None
        self.memory: torch.Tensor | None = None
        self._now: Shown = []
        self._given: dict[int, torch.Tensor | None] = {}
        self._moved: dict[int, torch.Tensor | None] = {}
        self._lent: dict[int, torch.Tensor | None] = {}
        self._written: list[torch.Tensor] = []
        self._version_shown = 0
        self._watch: Watch | None = None
        self._was_watched = False
        self._writes_unseen = False
        self.run_device = torch.device("cpu")

    @property
    def size_bytes(self) -> int:
        """Bytes of the unit's slab."""
        return self.layout.size_bytes

    @property
    def copied_bytes(self) -> int:
        """Bytes that a copy of the unit moves to the device."""
        is_coded = self.slab is not None and self.slab.coded is not None
        return self.slab.size_bytes if self.slab is not None and is_coded else self.size_bytes

    def plan(self, sources: Mapping[str, WeightSource], run_device: torch.device) -> None:
        """Lay out the slab from the tensors as they are, or as their sources say for meta ones.

        Raises:
            RuntimeError: a tensor is on meta and has no source.
            TypeError: a tensor subclass that cannot be taken apart.
        """
        found = {b: find_source(b, sources) for b in self.bindings if b.tensor.is_meta}
        there = find_in_files(self.bindings)  # those that were mapped before
        # In the order of the file, so that neighbours there are copied as one.
        self.bindings.sort(key=lambda b: file_position(found.get(b) or there.get(b.tensor)))
        specs, self.sources = list[TensorSpec](), []
        for binding in self.bindings:
            if binding in found:
                specs.append(source_spec(found[binding], run_device))
                self.sources.append(found[binding])
                continue
            for leaf in leaves_of(binding):
                spec = TensorSpec.of(leaf)
                specs.append(spec.at(leaf.data_ptr()) if run_device.type == "cpu" else spec)
                self.sources.append(there.get(leaf))
        self.layout = SlabLayout(specs)
        self.run_device = run_device
        self._was_watched = False

    def load(self, store: HostStore) -> None:
        """Fill a host master with the tensors' bytes and let the module's tensors be it."""
        self.slab = store.make(self.layout, self.sources, self.host_memory, to_code=self.compressed)
        leaves = iter(zip(self.slab.views, self.sources, self.slab.is_filled, strict=True))
        self.hosts = []
        for binding in self.bindings:
            if (tensor := binding.tensor).is_meta:
                view, source, is_filled = next(leaves)
                if not (is_filled or source is None or isinstance(source, FileBytes)):
                    source.read_into(view)
                tensor = rebuild(tensor, [view])
                binding.bind(tensor)
            else:
                for leaf in find_leaves(tensor, binding.fqn):
                    view, _, is_filled = next(leaves)
                    fill(view, leaf, is_filled=is_filled)
                    leaf.data = view  # the old memory goes: each byte is held once
            self.hosts.append(tensor)
        self.sources = []
        self.show_as_host()
        self.pin(store)

    def pin(self, store: HostStore) -> None:
        """Pin the host master; where its file cannot be registered, leave the file."""
        if self.slab is not None and not store.pin(self.slab, self.host_memory):
            self._move(store)

    def unload(self, store: HostStore) -> None:
        """Forget the slab; what the module shows, ordinary host tensors and edits, is its own."""
        self.forget_slots()
        self.state = UnitState.OFFLOADED
        if self.slab is not None:
            store.free(self.slab)
            self.slab = None

    def start_over(self, bindings: list[TensorBinding], store: HostStore) -> None:
        """Lay out and load the unit anew, from tensors that are in memory.

        What lay in the slab before stays as it is, for whoever holds it.
        """
        self.lay_out_anew(bindings, store)
        self.load(store)

    def lay_out_anew(self, bindings: list[TensorBinding], store: HostStore) -> None:
        """Plan the unit again for tensors that are in memory; they go on living on their own."""
        self.unload(store)
        self.bindings = bindings
        if self.host_memory in (HostMemory.MAPPED, HostMemory.COURIER):  # edits lie in no file
            self.host_memory = HostMemory.PINNED
        self.plan({}, self.run_device)

    def show_slot(self) -> None:
        """Let the module see the tensors in the unit's slot, or a copy that autograd may keep.

        A tensor that somebody put in place of a host tensor is shown itself.
        """
        assert self.slot is not None, f"{self.fqn} has no slot"
        self.close_entrances()
        self.memory = self.slot.buffer[: self.layout.size_bytes]
        if self.recorded:
            self.memory = self.memory.clone()
            self._written = kept_views(self.layout, self.memory)
            pairs = zip(self.hosts, self._rebuild_over(self._written), strict=True)
            shown = [route_gradient_to(*pair) for pair in pairs]
            self._written += [tensor for tensor in shown if tensor.requires_grad]
            self._now = self._registered(shown)
        else:
            if self.slot not in self._shown:
                with lasting():
                    over = self._rebuild_over(self.layout.views(self.slot.buffer))
                self._shown[self.slot] = self._registered(over)
            self._now, self._written = self._shown[self.slot], [self.slot.buffer]
        self._given = {**self.shown.given(), **self._moved}
        show(self._now if not self._given else self._with_given())
        self._version_shown = sum(tensor._version for tensor in self._written)
        self._watch = Watch(self.memory, self._now) if self._is_watched() else None

    def show_host(self) -> None:
        """Let the module see the host tensors, and what was put in their place."""
        given, lent = self._given, self._lent
        self._written, self._now, self._given, self._lent = [], self.shown.tensors, {}, {}
        self.memory = self._watch = self.inputs = None
        show(self._now if not given else [p for i, p in enumerate(self._now) if i not in given])
        for i, tensor in given.items():
            registry, name, _ = self._now[i]
            if registry.get(name) is lent.get(i):
                registry[name] = tensor
        self.open_entrances()

    def open_entrances(self) -> None:
        """Let calls of parts bring the unit, for it is away."""
        for attributes, name, call in self.entrances:
            attributes[name] = call

    def close_entrances(self) -> None:
        """Let parts be called without bringing the unit: it is there."""
        for attributes, name, _ in self.entrances:
            attributes.pop(name, None)

    def forget_slots(self) -> None:
        """Drop the tensors made over slots: the slots are going away."""
        self._shown.clear()
        self.slot = None

    def keep_written(self, store: HostStore) -> bool:
        """Carry to the host master what the forward wrote, in the slot or by assignment.

        Weights do not change in a forward: as a rule this only compares.

        Returns:
            Whether the slot still has what the master has.

        Raises:
            RuntimeError: a tensor was replaced by one of another shape or dtype, or the module
                keeps a view of its slot.
        """
        assert self.slab is not None
        if not self._written:  # a release was interrupted behind this
            return True
        assert self.memory is not None
        is_written = sum(tensor._version for tensor in self._written) != self._version_shown
        moved: set[int] = set()
        if self._watch is not None:
            moved = self._watch.moved()
            unseen = not is_written and self._watch.is_written()
            self._writes_unseen |= unseen or bool(moved)
            is_written |= unseen
        if is_written:
            for view, written in zip(self.slab.views, self.layout.views(self.memory), strict=True):
                view.copy_(written)
        is_assigned = False
        for i, ((registry, name, shown), (_, _, host)) in enumerate(
            zip(self._now, self.shown.tensors, strict=True)
        ):
            current = registry.get(name)
            if (current is shown and i not in moved) or i in self._given:
                continue
            is_assigned |= self._carry(current, host, name)
        if moved:
            self._shown.clear()  # they are no views of the slot any more
        if (is_written or is_assigned) and self.slab.is_written():  # reads the page table
            self._move(store)
        self._refuse_kept()
        return not (is_assigned or moved or (is_written and self.recorded))

    def _carry(self, current: torch.Tensor | None, host: torch.Tensor, name: str) -> bool:
        """Copy a tensor that a forward assigned to the host master; say whether that changed it."""
        if current is None or current.shape != host.shape or current.dtype != host.dtype:
            raise RuntimeError(
                f"{self.fqn}: the forward replaced {name!r} ({list(host.shape)} {host.dtype}) "
                "by another kind of tensor, which no unit can keep. Use Resident for it."
            )
        changed = False
        for target, leaf in zip(find_leaves(host, name), find_leaves(current, name), strict=True):
            fresh = leaf.detach().to(target.device)
            if not torch.equal(target.detach(), fresh):
                target.data.copy_(fresh)
                changed = True
        if host.requires_grad is not current.requires_grad and host.is_leaf:
            host.requires_grad_(current.requires_grad)  # a new Parameter asks for gradients
            changed = True
        return changed

    def _refuse_kept(self) -> None:
        """Raise RuntimeError where the module keeps a view of its slot, in a watched call."""
        if self._watch is None:
            return
        kept = None if self.recorded else self._watch.find_kept(self.module, self.inputs)
        if kept is not None:
            raise RuntimeError(
                f"{self.fqn}: the forward left a view of its weights in {kept}, and their memory "
                "goes to the next block now. Keep a copy (`.clone()`), or use Resident for it."
            )
        self._was_watched = True

    def _is_watched(self) -> bool:
        """Whether this call is watched, see Note [Unseen writes]."""
        return self._writes_unseen or not self._was_watched or self.run_device.type == "cpu"

    def is_stale(self) -> bool:
        """Whether a tensor of the module is not what copies of the unit would bring."""
        assert self.slab is not None
        return self.slab.is_written() or self.shown.changed()

    def revalidate(self, store: HostStore) -> None:
        """Take over what was edited since the last run.

        An edit in place has written the slab itself, for the module's tensors lie in it. Where a
        tensor was replaced (``assign=True``, ``p.data = ...``) the unit is laid out anew, and the
        old tensor keeps its memory, for it may be put back one day.

        Raises:
            RuntimeError: a tensor changed its shape or dtype, and slots are made for the old one.
        """
        assert self.slab is not None
        self._shown.clear()
        self._moved = {}
        apart = split_ties(self.bindings)
        is_untied = len(apart) > len(self.bindings)  # a tied tensor was replaced in one place
        leaves = [(b.fqn, leaf) for b in apart for leaf in find_leaves(b.tensor, b.fqn)]
        is_replaced = is_untied or len(leaves) != len(self.slab.views)
        if not is_replaced:
            triples = zip(leaves, self.slab.views, self.layout.specs, strict=True)
            for (fqn, leaf), view, spec in triples:
                is_same = leaf.shape == spec.shape and leaf.dtype == spec.dtype
                if not is_same and not self.transient:
                    raise RuntimeError(
                        f"{fqn} was {list(spec.shape)} {spec.dtype} when its offloading was set "
                        f"up and is {list(leaf.shape)} {leaf.dtype} now. Detach the callback "
                        "(`detach()` or `teardown()`), change the weights, then attach it again."
                    )
                is_replaced |= not is_same or leaf.data_ptr() != view.data_ptr()
                is_replaced |= not spec.matches(leaf)
        if is_replaced:
            self.start_over(apart, store)
        else:
            self.hosts = [binding.tensor for binding in self.bindings]
        self.show_as_host()
        if self.slab is not None and self.slab.is_written():
            self._move(store)

    def leave_lent(self, store: HostStore) -> None:
        """In `functional_call`: take over writes, but leave the tensors that the call lends."""
        assert self.slab is not None
        if self.slab.is_written():
            self._move(store)
        self._moved = self.shown.moved()

    def check(self) -> None:
        """Assert that the module shows what the state says."""
        resident = self.state is UnitState.RESIDENT
        assert resident <= (self.slot is not None), f"{self.fqn} is resident nowhere"
        expected = self._now if resident else self.shown.tensors
        for registry, name, tensor in expected:
            assert registry[name] is tensor, f"{self.fqn}: {name} is not what {self.state} shows"

    def has(self, binding: TensorBinding) -> bool:
        """Whether the tensor that a binding names moves with the unit, under one of its names."""
        mine = {(id(r.registry), r.name) for b in self.bindings for r in b.registrations}
        return any((id(r.registry), r.name) in mine for r in binding.registrations)

    def host_tensors(self) -> dict[str, torch.Tensor]:
        """The host master by FQN, every alias included."""
        pairs = zip(self.bindings, self.hosts, strict=True)
        return {name: host for binding, host in pairs for name in binding.names}

    def hidden_tensors(self) -> dict[str, torch.Tensor]:
        """Host tensors by FQN where the module shows the slot in their place."""
        if self.memory is None:
            return {}
        pairs = zip(self.host_tensors().items(), self._now, strict=True)
        return {
            fqn: host
            for (fqn, host), (registry, name, shown) in pairs
            if registry.get(name) is shown
        }

    def _move(self, store: HostStore) -> None:
        """Go from mapped files to a slab of the unit's own."""
        assert self.slab is not None
        with lasting():
            self.slab = store.copy_out(self.slab)
        views = iter(self.slab.views)
        for binding, host in zip(self.bindings, self.hosts, strict=True):
            for leaf in find_leaves(host, binding.fqn):
                leaf.data = next(views)
        self.show_as_host()
        store.pin(self.slab, self.host_memory)

    def _with_given(self) -> list[tuple[Registry, str, torch.Tensor | None]]:
        """What the module shows in a call where other tensors replace host tensors."""
        self._lent = {i: self._bring(given) for i, given in self._given.items()}
        return [
            (registry, name, self._lent.get(i, shown))
            for i, (registry, name, shown) in enumerate(self._now)
        ]

    def _bring(self, given: torch.Tensor | None) -> torch.Tensor | None:
        """A replacing tensor on the device, for a call; itself where it is there already."""
        assert self.memory is not None
        device = self.memory.device
        if given is None or given.device == device:
            return given
        if torch._C._functorch.is_functorch_wrapped_tensor(given):
            raise RuntimeError(
                f"{self.fqn} is called with another weight inside of a `torch.func` transform, "
                f"which lies on {given.device} and computes on {device}. Give it one on {device}."
            )
        if self.recorded:
            return given.to(device)
        with lasting():
            leaves = find_leaves(given, self.fqn)
            return rebuild(given, [leaf.detach().to(device) for leaf in leaves])

    def _rebuild_over(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = iter(views)
        return [
            rebuild(host, [next(leaves) for _ in find_leaves(host, binding.fqn)])
            for binding, host in zip(self.bindings, self.hosts, strict=True)
        ]

    def show_as_host(self) -> None:
        """Take the host tensors as they are now for what the module shows between calls."""
        self.shown = ShownTensors(self._registered(self.hosts))

    def _registered(self, tensors: list[torch.Tensor]) -> Shown:
        return [
            (registration.registry, registration.name, tensor)
            for binding, tensor in zip(self.bindings, tensors, strict=True)
            for registration in binding.registrations
        ]


@dataclass(eq=False)
class UnitGroup:
    """What one callback moves of one model.

    Attributes:
        streamed: the units that take turns in the ring's slots, in the order of execution.
        residents: units that stay in slots of their own, see Note [Resident slots].
        candidate_order: the order in which the last pass needed the streamed units, where that
            was another order.
    """

    streamed: Sequence[OffloadUnit] = ()
    residents: Sequence[OffloadUnit] = field(default=())
    candidate_order: Sequence[OffloadUnit] = field(default=())

    @property
    def first(self) -> OffloadUnit | None:
        """The unit that a call of the model needs first."""
        return next(iter((*self.streamed, *self.residents)), None)

    @property
    def units(self) -> tuple[OffloadUnit, ...]:
        """All units of the group."""
        return (*self.streamed, *self.residents)
