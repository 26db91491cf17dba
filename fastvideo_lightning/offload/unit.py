"""OffloadUnit: what moves as one, usually a transformer block."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from fastvideo_lightning.offload import reading
from fastvideo_lightning.offload.bindings import Shown, TensorBinding, show, split_ties
from fastvideo_lightning.offload.host import HostMaster, HostMemory
from fastvideo_lightning.offload.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.leaves import fill, find_leaves, leaves_of, rebuild
from fastvideo_lightning.offload.recording import kept_views, with_way_back
from fastvideo_lightning.offload.rest import Rest
from fastvideo_lightning.offload.source import FileBytes, WeightSource
from fastvideo_lightning.offload.state import UnitState
from fastvideo_lightning.offload.store import HostStore

if TYPE_CHECKING:
    from fastvideo_lightning.offload.slots import DeviceSlot


class Entrance(NamedTuple):
    """What is put into a module's own attributes while its unit is away, see Note [Entrances]."""

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

    Attributes:
        state: see ``UnitState``.
        slot: the slot that holds the unit's bytes, or None.
        home: the slot that is kept for it, or None; see Note [Homes].
        uses: calls in progress.
        recorded: autograd records its call; see Note [Backward through streamed blocks].
        sources: until ``load``, what each tensor is read from; None where it has its bytes.
        hosts: the tensors on the host, one for each of ``bindings``.
        rest: where the module shows them between its calls.
        entrances: how parts of the module are called by themselves.
    """

    def __init__(
        self,
        fqn: str,
        module: nn.Module,
        bindings: list[TensorBinding],
        *,
        transient: bool = False,
        host_memory: HostMemory = HostMemory.AUTO,
    ) -> None:
        self.fqn = fqn
        self.module = module
        self.bindings = bindings
        self.transient = transient
        self.host_memory = host_memory
        self.state = UnitState.OFFLOADED
        self.slot: DeviceSlot | None = None
        self.preferred_slot = 0
        self.home: DeviceSlot | None = None
        self.uses = 0
        self.recorded = False
        self.label = f" {fqn}"
        self.layout = SlabLayout(())
        self.slab: HostMaster | None = None
        self.sources: list[WeightSource | FileBytes | None] = []
        self.hosts: list[torch.Tensor] = []
        self._shown: dict[DeviceSlot, Shown] = {}
        self.rest = Rest([])
        self.entrances: list[Entrance] = []
        self._now: Shown = []
        self._written: list[torch.Tensor] = []
        self._version_shown = 0
        self.run_device = torch.device("cpu")

    @property
    def size_bytes(self) -> int:
        """Bytes of the unit's slab."""
        return self.layout.size_bytes

    def plan(self, sources: Mapping[str, WeightSource], run_device: torch.device) -> None:
        """Lay out the slab from the tensors as they are, or as their sources say for meta ones.

        Raises:
            RuntimeError: a tensor is on meta and has no source.
            TypeError: a tensor subclass that cannot be taken apart.
        """
        found = {b: reading.find_source(b, sources) for b in self.bindings if b.tensor.is_meta}
        there = reading.find_in_files(self.bindings)  # those that were mapped before
        # In the order of the file, so that neighbours there are copied as one.
        self.bindings.sort(key=lambda b: reading.file_position(found.get(b) or there.get(b.tensor)))
        specs, self.sources = list[TensorSpec](), []
        for binding in self.bindings:
            if binding in found:
                specs.append(reading.source_spec(found[binding], run_device))
                self.sources.append(found[binding])
                continue
            for leaf in leaves_of(binding):
                spec = TensorSpec.of(leaf)
                specs.append(spec.at(leaf.data_ptr()) if run_device.type == "cpu" else spec)
                self.sources.append(there.get(leaf))
        self.layout = SlabLayout(specs)
        self.run_device = run_device

    def load(self, store: HostStore) -> None:
        """Fill a host master with the tensors' bytes and let the module's tensors be it."""
        self.slab = store.make(self.layout, self.sources, self.host_memory)
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

    def unload(self, store: HostStore, *, restore: bool = True) -> None:
        """Leave ordinary host tensors in the module (or what it shows now), forget the slab."""
        if restore:
            self.show_host()
        self.forget_slots()
        self.state = UnitState.OFFLOADED
        if self.slab is not None:
            store.free(self.slab)
            self.slab = None

    def start_over(self, bindings: list[TensorBinding], store: HostStore) -> None:
        """Lay out and load the unit anew, from tensors that are in memory."""
        self.lay_out_anew(bindings, store)
        self.load(store)

    def lay_out_anew(self, bindings: list[TensorBinding], store: HostStore) -> None:
        """Plan the unit again for tensors that are in memory; they go on living on their own."""
        self.unload(store, restore=False)
        self.bindings = bindings
        if self.host_memory is HostMemory.MAPPED:
            self.host_memory = HostMemory.PINNED
        self.plan({}, self.run_device)

    def show_slot(self) -> None:
        """Let the module see the tensors in the unit's slot, or a copy that autograd may keep."""
        assert self.slot is not None, f"{self.fqn} has no slot"
        self.close_entrances()
        if self.recorded:
            views = kept_views(self.layout, self.slot.buffer)
            pairs = zip(self.hosts, self._over(views), strict=True)
            self._now = self._places([with_way_back(*pair) for pair in pairs])
            self._written = views
        else:
            if self.slot not in self._shown:
                over = self._over(self.layout.views(self.slot.buffer))
                self._shown[self.slot] = self._places(over)
            self._now, self._written = self._shown[self.slot], [self.slot.buffer]
        show(self._now)
        self._version_shown = sum(tensor._version for tensor in self._written)

    def show_host(self) -> None:
        """Let the module see the host tensors."""
        self._written, self._now = [], self.rest.places
        show(self._now)
        self.open_entrances()

    def open_entrances(self) -> None:
        """Let calls of parts bring the unit, for it is away."""
        for attributes, name, call in self.entrances:
            attributes[name] = call

    def close_entrances(self) -> None:
        """Let parts be called as ever."""
        for attributes, name, _ in self.entrances:
            attributes.pop(name, None)

    def forget_slots(self) -> None:
        """Drop the tensors made over slots: the slots are going away."""
        self._shown.clear()
        self.slot = None

    def keep_written(self, store: HostStore) -> None:
        """Carry to the host master what the forward wrote, in the slot or by assignment.

        Weights do not change in a forward, caches do: as a rule this only compares.

        Raises:
            RuntimeError: a tensor was replaced by one of another shape or dtype.
        """
        assert self.slab is not None
        if not self._written:  # a release was interrupted behind this
            return
        is_written = sum(tensor._version for tensor in self._written) != self._version_shown
        if is_written:
            views = self._written if self.recorded else self.layout.views(self._written[0])
            for view, written in zip(self.slab.views, views, strict=True):
                view.copy_(written)
        for (registry, name, shown), (_, _, host) in zip(self._now, self.rest.places, strict=True):
            current = registry[name]
            if current is shown:
                continue
            if current is None or current.shape != host.shape or current.dtype != host.dtype:
                raise RuntimeError(
                    f"{self.fqn}: the forward replaced {name!r} ({list(host.shape)} {host.dtype}) "
                    "by another kind of tensor, which no unit can keep. Use Resident for it."
                )
            for target, leaf in zip(
                find_leaves(host, name), find_leaves(current, name), strict=True
            ):
                target.data.copy_(leaf.detach())
            is_written = True
        if is_written and self.slab.is_written():  # the latter reads the page table
            self._move(store)

    def is_stale(self) -> bool:
        """Whether a tensor of the module is not what copies of the unit would bring."""
        assert self.slab is not None
        return self.slab.is_written() or self.rest.is_left()

    def revalidate(self, store: HostStore) -> None:
        """Take over what was edited since the last run.

        An edit in place wrote the slab itself, for the module's tensors are the slab. A tensor that
        was replaced (``assign=True``, ``p.data = ...``) is copied into the slab. A transient unit
        whose dtype was changed is laid out anew.

        Raises:
            RuntimeError: a tensor changed its shape or dtype, and slots are made for the old one.
        """
        assert self.slab is not None
        self._shown.clear()
        apart = split_ties(self.bindings)
        is_untied = len(apart) > len(self.bindings)  # a tied tensor was replaced in one place
        leaves = [leaf for b in apart for leaf in find_leaves(b.tensor, b.fqn)]
        if is_untied or (self.transient and not self.layout.matches(leaves)):
            self.start_over(apart, store)
            return
        views, specs = iter(self.slab.views), iter(self.layout.specs)
        for i, binding in enumerate(self.bindings):
            tensor = binding.tensor
            for leaf in find_leaves(tensor, binding.fqn):
                view, spec = next(views), next(specs)
                if leaf.data_ptr() == view.data_ptr() and spec.matches(leaf):
                    continue
                if leaf.shape != spec.shape or leaf.dtype != spec.dtype:
                    raise RuntimeError(
                        f"{binding.fqn} was {list(spec.shape)} {spec.dtype} when its offloading "
                        f"was set up and is {list(leaf.shape)} {leaf.dtype} now. Detach the "
                        "callback (`detach()` or `teardown()`), change the weights, then attach "
                        "it again."
                    )
                view.copy_(leaf.detach())
                leaf.data = view
            self.hosts[i] = tensor
        self.show_as_host()
        if self.slab.is_written():
            self._move(store)

    def check(self) -> None:
        """Assert that the module shows what the state says."""
        resident = self.state is UnitState.RESIDENT
        assert resident <= (self.slot is not None), f"{self.fqn} is resident nowhere"
        expected = self._now if resident else self.rest.places
        for registry, name, tensor in expected:
            assert registry[name] is tensor, f"{self.fqn}: {name} is not what {self.state} shows"

    def host_tensors(self) -> dict[str, torch.Tensor]:
        """The host master by FQN, every alias included."""
        pairs = zip(self.bindings, self.hosts, strict=True)
        return {name: host for binding, host in pairs for name in binding.names}

    def _move(self, store: HostStore) -> None:
        """Go from mapped files to a slab of the unit's own."""
        assert self.slab is not None
        self.slab = store.take_out(self.slab)
        views = iter(self.slab.views)
        for binding, host in zip(self.bindings, self.hosts, strict=True):
            for leaf in find_leaves(host, binding.fqn):
                leaf.data = next(views)
        self.show_as_host()
        store.pin(self.slab, self.host_memory)

    def _over(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = iter(views)
        return [
            rebuild(host, [next(leaves) for _ in find_leaves(host, binding.fqn)])
            for binding, host in zip(self.bindings, self.hosts, strict=True)
        ]

    def show_as_host(self) -> None:
        """Take the host tensors, where and as they are, for what the module shows at rest."""
        self.rest = Rest(self._places(self.hosts))

    def _places(self, tensors: list[torch.Tensor]) -> Shown:
        return [
            (place.registry, place.name, tensor)
            for binding, tensor in zip(self.bindings, tensors, strict=True)
            for place in binding.places
        ]
