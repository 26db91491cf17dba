"""OffloadUnit: what moves as one, usually a transformer block."""

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastvideo_lightning.offload.bindings import Registry, TensorBinding
from fastvideo_lightning.offload.host import HostSlab, HostStore
from fastvideo_lightning.offload.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.leaves import find_leaves, is_plain, rebuild
from fastvideo_lightning.offload.source import WeightSource

if TYPE_CHECKING:
    from fastvideo_lightning.offload.slots import DeviceSlot


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


class OffloadUnit:
    """The tensors of one module, moved by one copy.

    Args:
        fqn: name of the module, seen from the root.
        module: the module whose call needs the tensors.
        bindings: its tensors.
        transient: the unit has device memory of its own while it is in use, in place of a slot of
            the ring.
        pin_memory: pin the unit's host master.

    Attributes:
        state: see ``UnitState``.
        slot: the slot that holds the unit's bytes, or None.
        uses: calls that are in progress (a module may call itself).
    """

    def __init__(
        self,
        fqn: str,
        module: nn.Module,
        bindings: list[TensorBinding],
        *,
        transient: bool = False,
        pin_memory: bool = True,
    ) -> None:
        self.fqn = fqn
        self.module = module
        self.bindings = bindings
        self.transient = transient
        self.pin_memory = pin_memory
        self.state = UnitState.OFFLOADED
        self.slot: DeviceSlot | None = None
        self.preferred_slot = 0
        self.uses = 0
        self.label = f" {fqn}"
        self.layout = SlabLayout(())
        self.slab: HostSlab | None = None
        self._hosts: list[torch.Tensor] = []
        self._shown: dict[DeviceSlot, list[tuple[Registry, str, torch.Tensor]]] = {}
        self._host_places: list[tuple[Registry, str, torch.Tensor]] = []
        self._host_addresses: list[tuple[int, ...]] = []
        self._version_shown = 0

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
        specs: list[TensorSpec] = []
        for binding in self.bindings:
            if binding.tensor.is_meta:
                specs.append(source_spec(find_source(binding, sources), run_device))
                continue
            for leaf in find_leaves(binding.tensor, binding.fqn):
                spec = TensorSpec.of(leaf)
                specs.append(spec.at(leaf.data_ptr()) if run_device.type == "cpu" else spec)
        self.layout = SlabLayout(specs)

    def load(self, store: HostStore, sources: Mapping[str, WeightSource]) -> None:
        """Fill a slab with the tensors' bytes and let the module's tensors be the slab."""
        self.slab = store.allocate(self.layout)
        views = iter(self.slab.views)
        self._hosts = []
        for binding in self.bindings:
            tensor = binding.tensor
            if tensor.is_meta:
                view = next(views)
                find_source(binding, sources).read_into(view)
                tensor = rebuild(tensor, [view])
                binding.bind(tensor)
            else:
                for leaf in find_leaves(tensor, binding.fqn):
                    view = next(views)
                    view.copy_(leaf.detach())
                    leaf.data = view  # the old memory goes: each byte is held once
            self._hosts.append(tensor)
        self._show_as_host()
        if self.pin_memory:
            store.pin(self.slab)

    def unload(self, store: HostStore) -> None:
        """Leave ordinary host tensors in the module and forget the slab."""
        self.show_host()
        self._shown.clear()
        self.slot = None
        self.state = UnitState.OFFLOADED
        if self.slab is not None:
            store.free(self.slab)
            self.slab = None

    def show_slot(self) -> None:
        """Let the module see the tensors in the unit's slot."""
        assert self.slot is not None, f"{self.fqn} has no slot"
        shown = self._shown.get(self.slot)
        if shown is None:
            shown = self._shown[self.slot] = self._places(self._on_device(self.slot))
        for registry, name, tensor in shown:
            registry[name] = tensor
        self._version_shown = self.slot.buffer._version

    def show_host(self) -> None:
        """Let the module see the host tensors."""
        for registry, name, tensor in self._host_places:
            registry[name] = tensor

    def forget_slots(self) -> None:
        """Drop the tensors made over slots: the slots are going away."""
        self._shown.clear()
        self.slot = None

    def keep_written(self) -> None:
        """Carry to the host master what the forward wrote, in the slot or by assignment.

        Weights do not change in a forward, so as a rule this compares one number; running
        statistics and caches in buffers do.

        Raises:
            RuntimeError: a tensor was replaced by one of another shape or dtype.
        """
        assert self.slot is not None
        assert self.slab is not None
        if self.slot.buffer._version != self._version_shown:
            self.slab.buffer.copy_(self.slot.buffer[: self.size_bytes])
        for (registry, name, shown), (_, _, host) in zip(
            self._shown[self.slot], self._host_places, strict=True
        ):
            current = registry[name]
            if current is shown:
                continue
            if current is None or current.shape != host.shape or current.dtype != host.dtype:
                raise RuntimeError(
                    f"{self.fqn}: the forward replaced {name!r} ({list(host.shape)} {host.dtype}) "
                    "by another kind of tensor, which a unit of fixed layout cannot keep. Use "
                    "Resident for this module."
                )
            for target, leaf in zip(
                find_leaves(host, name), find_leaves(current, name), strict=True
            ):
                target.data.copy_(leaf.detach())

    def is_stale(self) -> bool:
        """Whether a tensor of the module is no longer the slab's."""
        return any(
            registry[name] is not host or leaf_ptrs != _addresses(host)
            for (registry, name, host), leaf_ptrs in zip(
                self._host_places, self._host_addresses, strict=True
            )
        )

    def revalidate(self) -> None:
        """Take over what was edited since the last run.

        An edit in place wrote the slab itself, for the module's tensors are the slab. A tensor that
        was replaced (``assign=True``, ``p.data = ...``) is copied into the slab.

        Raises:
            RuntimeError: a tensor changed its shape or dtype, which needs another layout.
        """
        assert self.slab is not None
        views = iter(self.slab.views)
        specs = iter(self.layout.specs)
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
            if tensor is not self._hosts[i]:
                binding.bind(tensor)
                self._hosts[i] = tensor
                self._shown.clear()
        self._show_as_host()

    def check(self) -> None:
        """Assert that the module shows what the state says."""
        resident = self.state is UnitState.RESIDENT
        assert resident <= (self.slot is not None), f"{self.fqn} is resident nowhere"
        expected = self._shown[self.slot] if resident and self.slot else self._host_places
        for registry, name, tensor in expected:
            assert registry[name] is tensor, f"{self.fqn}: {name} is not what {self.state} shows"

    def host_tensors(self) -> dict[str, torch.Tensor]:
        """The host master by FQN, every alias included."""
        return {
            name: host
            for binding, host in zip(self.bindings, self._hosts, strict=True)
            for name in binding.names
        }

    def _on_device(self, slot: "DeviceSlot") -> list[torch.Tensor]:
        views = iter(self.layout.views(slot.buffer))
        return [
            rebuild(host, [next(views) for _ in find_leaves(host, binding.fqn)])
            for binding, host in zip(self.bindings, self._hosts, strict=True)
        ]

    def _show_as_host(self) -> None:
        self._host_places = self._places(self._hosts)
        self._host_addresses = [_addresses(host) for _, _, host in self._host_places]

    def _places(self, tensors: list[torch.Tensor]) -> list[tuple[Registry, str, torch.Tensor]]:
        return [
            (place.registry, place.name, tensor)
            for binding, tensor in zip(self.bindings, tensors, strict=True)
            for place in binding.places
        ]


def _addresses(tensor: torch.Tensor) -> tuple[int, ...]:
    if is_plain(tensor):
        return (tensor.data_ptr(),)
    return tuple(leaf.data_ptr() for leaf in find_leaves(tensor, ""))


def source_spec(
    source: WeightSource, run_device: torch.device, device: torch.device | None = None
) -> TensorSpec:
    """The spec of a tensor that is yet to be read.

    Args:
        source: where it lies.
        run_device: the device of the run, which settles the dtype.
        device: where the tensor computes, by default there; on the CPU it keeps its file's phase.
    """
    spec = TensorSpec.contiguous(source.shape, source.dtype_on(run_device))
    plain = source.path is not None and spec.dtype == source.stored_dtype
    return spec.at(source.offset) if plain and (device or run_device).type == "cpu" else spec


def find_source(binding: TensorBinding, sources: Mapping[str, WeightSource]) -> WeightSource:
    """The source of a tensor on meta, under any of its names.

    Raises:
        RuntimeError: there is none.
    """
    for name in binding.names:
        if name in sources:
            return sources[name]
    raise RuntimeError(
        f"{binding.fqn} is on the meta device and no checkpoint says where its bytes are. Load "
        "the module with VideoModule.from_pretrained(...), or give it real weights first."
    )
