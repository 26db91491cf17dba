"""Gives units the tensors that their modules got, and takes those that they lost, once attached.

Note [Adapters in streamed blocks]
PEFT puts a layer of its own around a linear layer: the block's weights stay the same tensors under
other names, and the adapter's small tensors come beside them. So the bytes of a unit's original
tensors stay where they are, in a mapped file or in a pinned slab, and added tensors are copied to a
second slab behind them (``ExtendedMaster``), which goes when they go. The whole unit is laid out
anew only where one of its original tensors has left the module.
"""

from collections.abc import Mapping

from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.entrances import find_entrances
from fastvideo_lightning.offload.host.slab import HostMaster, HostMemory
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.leaves import find_leaves
from fastvideo_lightning.offload.unit import OffloadUnit


def rebind_units(
    engine: OffloadEngine, contents: Mapping[OffloadUnit, list[TensorBinding]]
) -> None:
    """Let units have the tensors given here, see Note [Adapters in streamed blocks].

    Args:
        engine: streams the units; none of them is in use.
        contents: for each unit the tensors that its module has now.
    """
    engine.drain()
    for unit, bindings in contents.items():
        _rebind(unit, bindings, engine.store)
        find_entrances(engine, unit)
    engine.memory.fit(engine.units)


def _rebind(unit: OffloadUnit, bindings: list[TensorBinding], store: HostStore) -> None:
    assert unit.slab is not None, f"{unit.fqn} is not attached"
    found = {id(binding.tensor): binding for binding in bindings}
    base = store.trim(unit.slab)
    first = _count_in(base, unit)
    unit.slab, unit.layout = base, base.layout
    unit.hosts = unit.hosts[:first]
    unit.forget_slots()
    if any(id(host) not in found for host in unit.hosts):
        unit.start_over(bindings, store)
        return
    unit.bindings = [found.pop(id(host)) for host in unit.hosts]
    if found:
        _append(unit, list(found.values()), store)
    unit.show_as_host()
    unit.revalidate(store)  # the original tensors may have been edited as well


def _append(unit: OffloadUnit, added: list[TensorBinding], store: HostStore) -> None:
    """Give a unit tensors beside those that it has."""
    maps = unit.host_memory in (HostMemory.MAPPED, HostMemory.COURIER)
    memory = HostMemory.PINNED if maps else unit.host_memory  # what is new lies in no file
    behind = OffloadUnit(unit.fqn, unit.module, added, host_memory=memory)
    behind.plan({}, unit.run_device)
    behind.load(store)
    assert unit.slab is not None
    assert behind.slab is not None
    unit.slab = store.extend(unit.slab, behind.slab)
    unit.layout = unit.slab.layout
    unit.bindings += behind.bindings
    unit.hosts += behind.hosts


def _count_in(master: HostMaster, unit: OffloadUnit) -> int:
    """How many of a unit's tensors, the first ones, a master holds."""
    leaves = count = 0
    for host in unit.hosts:
        leaves += len(find_leaves(host, unit.fqn))
        count += leaves <= len(master.views)
    return count
