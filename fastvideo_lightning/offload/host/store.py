"""HostStore: all host masters of an engine, and what they hold."""

import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import torch

from fastvideo_lightning.offload.host.mapped import (
    MappedSlab,
    PrivateMappings,
    is_mappable,
    register_ranges,
)
from fastvideo_lightning.offload.host.slab import ExtendedMaster, HostMaster, HostMemory, HostSlab
from fastvideo_lightning.offload.profiling import phase
from fastvideo_lightning.offload.tensors.layout import SlabLayout
from fastvideo_lightning.offload.tensors.sources import StoredBytes

FileLocations = dict[SlabLayout, list[StoredBytes | None]]
"""For each unit, known by its layout, where its tensors lie in files that all ranks map."""


class Loaded(Protocol):
    """What the store asks of a unit whose bytes are loaded."""

    transient: bool
    host_memory: HostMemory
    slab: HostMaster | None

    def pin(self, store: "HostStore") -> None:
        """Pin its bytes, or move them where they can be."""
        ...


class HostStore:
    """Makes host masters of the kind that is wanted and possible; safe from any thread.

    Args:
        device: the device that they are copied to; only CUDA memory can be registered for.

    Attributes:
        masters: those that it has made and not freed.
        locations: where the tensors of units that are being loaded lie in files that ranks share.
        mappings: what the parameters of units that are being loaded become views of.
        is_shared: whether the ranks of the node hold their weights together.
        brings_parts: whether this process copies only its parts of the weights that ranks share.
    """

    def __init__(self, device: torch.device) -> None:
        self._has_driver = device.type == "cuda"
        self._refused: set[type] = set()
        self._lock = threading.Lock()
        self.locations: FileLocations = {}
        self.mappings = PrivateMappings()
        self.masters: list[HostMaster] = []
        self._file_refusal: RuntimeError | None = None
        self.is_shared = False
        self.brings_parts = False
        self._pins_later = False
        weakref.finalize(self, _let_go, self.masters, device).atexit = False

    @property
    def size_bytes(self) -> int:
        """Bytes that the masters hold on the host, those of mapped files included."""
        return sum(master.size_bytes for master in self.masters)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of them that the driver knows."""
        return sum(master.size_bytes for master in self.masters if master.pinned)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of them that are in checkpoint files."""
        bases = map(_base, self.masters)
        return sum(base.file_bytes for base in bases if isinstance(base, MappedSlab))

    @contextmanager
    def holding_some(self, units: Sequence[Loaded]) -> Iterator[None]:
        """Surrounds the loading of units; where some are read on the way, pins only the others."""
        units = [unit for unit in units if not unit.transient]
        is_read = [unit.host_memory.is_read for unit in units]
        self._pins_later = self._has_driver and any(is_read) and not all(is_read)
        try:
            yield
        finally:
            pins_now, self._pins_later = self._pins_later, False
        if pins_now:
            slabs = [u.slab for u in units if isinstance(u.slab, MappedSlab) and not u.slab.reads]
            with phase("register what is held"), suppress(RuntimeError):  # the same is tried below
                register_ranges(slabs)
            for unit in units:
                unit.pin(self)

    def make(
        self,
        layout: SlabLayout,
        sources: Sequence[StoredBytes | None],
        kind: HostMemory,
        *,
        to_code: bool = False,
    ) -> HostMaster:
        """A host master for a unit: not yet pinned, and only its mapped tensors have their bytes.

        Args:
            layout: where its tensors lie in a slot.
            sources: for each tensor where its bytes come from; None where they are in memory.
            kind: what kind of memory.
            to_code: what lies in files will be coded, so it is read on the way until then.

        Raises:
            ValueError: mapped memory is asked for and no weight can be.
        """
        if to_code and _mostly_mappable(layout, sources):
            master: HostMaster = self._map(layout, sources, HostMemory.COURIER)
        elif layout in self.locations and not kind.is_read:
            master = MappedSlab(layout, self.locations[layout], self.mappings)
        elif self.maps(layout, sources, kind) and not self._must_copy:
            master = self._map(layout, sources, kind)
        else:
            master = HostSlab(layout)
        with self._lock:
            self.masters.append(master)
        return master

    @property
    def _must_copy(self) -> bool:
        """Files cannot be registered, and are not read on the way where ranks share memory."""
        return MappedSlab in self._refused and self.is_shared

    def _map(
        self, layout: SlabLayout, sources: Sequence[StoredBytes | None], kind: HostMemory
    ) -> MappedSlab:
        master = MappedSlab(layout, sources, self.mappings)
        if kind.is_read or MappedSlab in self._refused:
            master.use_couriers(direct=kind is HostMemory.DISK)
        return master

    def maps(
        self, layout: SlabLayout, sources: Sequence[StoredBytes | None], kind: HostMemory
    ) -> bool:
        """Whether a unit's file is its host copy where it fits; ValueError where nothing fits."""
        fitting = _mappable_bytes(layout, sources)
        maps = kind is HostMemory.MAPPED or kind.is_read
        if maps and not fitting and layout.size_bytes:
            raise ValueError(
                f"host_memory='{kind}' needs weights that lie in a safetensors file in the dtype "
                f"that they run in, and {_where(layout, sources)}. Write such a checkpoint with "
                "`fastvideo-lightning pack MODEL OUT` and load it, or pass host_memory='auto'."
            )
        if kind is HostMemory.AUTO and (self._has_driver or self.is_shared):
            maps = _mostly_mappable(layout, sources)
        return maps

    def pin(self, master: HostMaster, kind: HostMemory) -> bool:
        """Pin a filled master: registering memory that was touched already is the fast way.

        Where the system refuses, one warning says what is done instead, and no memory of that kind
        is tried again.

        Returns:
            Whether the master may stay; a mapped one that cannot be registered should not.
        """
        if not self._has_driver or kind is HostMemory.PAGEABLE:
            return True
        if self._pins_later or (self.brings_parts and master.layout in self.locations):
            return True  # with the other units, when all are there
        base = _base(master)
        kind_of_master = HostSlab if base.reads else type(base)  # of a file, what lies beside it
        if kind_of_master not in self._refused:
            try:
                master.pin()
                self._warn_of(None)
            except RuntimeError as error:
                with self._lock:
                    is_first = kind_of_master not in self._refused
                    self._refused.add(kind_of_master)
                    if is_first and kind_of_master is MappedSlab:
                        self._file_refusal = error  # told when it shows what is done in its place
                if is_first and kind_of_master is not MappedSlab:
                    self._warn_of(error)
        is_refused = MappedSlab in self._refused and not self._must_copy
        if is_refused and isinstance(base, MappedSlab) and not base.reads:
            base.use_couriers()
            return self.pin(master, kind)  # what lies beside the file
        return master.pinned or not isinstance(master, MappedSlab) or bool(master.reads)

    def _warn_of(self, refusal: RuntimeError | None) -> None:
        """Weights are pinned in the end, or not: say what was refused on the way."""
        with self._lock:
            of_file, self._file_refusal = self._file_refusal, None
        if refusal is not None:
            message = (
                f"The system refuses to pin host memory ({refusal}). Weights are copied from "
                "pageable memory: the results are the same, the copies slower. Raise the "
                "locked-memory limit (`ulimit -l unlimited`), or pass pin_cpu_memory=False."
            )
        elif of_file is None:
            return
        elif self._must_copy:
            message = (
                f"The system refuses to register the checkpoint's file ({of_file}). Weights are "
                "read into memory of their own. Pass host_memory='pinned' to do so without trying."
            )
        else:
            message = (
                f"The system refuses to register the checkpoint's file ({of_file}). It is read "
                "anew for each pass through half a GiB of pinned buffers: the results are the "
                "same. Pass host_memory='courier' to do so without trying, or 'pinned' where the "
                "host has memory for a copy of the weights."
            )
        warnings.warn(message, stacklevel=4)

    @property
    def registers_files(self) -> bool:
        """Whether mapped files can be registered, as far as is known."""
        return self._has_driver and MappedSlab not in self._refused

    def pin_again(self, master: HostMaster) -> None:
        """Register all of a master: from now on this rank copies more than its parts."""
        mapped = _base(master)
        if isinstance(mapped, MappedSlab):
            mapped.pin_again()

    def extend(self, base: HostMaster, added: HostMaster) -> ExtendedMaster:
        """Make one master of two: ``added`` behind ``base``."""
        joined = ExtendedMaster(base, added)
        self.masters[self.masters.index(base)] = joined
        self.masters.remove(added)
        return joined

    def trim(self, master: HostMaster) -> HostMaster:
        """Free the part that extends a master, and return the master without it."""
        if not isinstance(master, ExtendedMaster):
            return master
        self.masters[self.masters.index(master)] = master.base
        master.added.close()
        return master.base

    def copy_out(self, master: HostMaster) -> HostMaster:
        """Copy what a master has in mapped files to memory of our own; let go of the files."""
        mapped = _base(master)
        own = HostSlab(mapped.layout)
        for view, mapped_view in zip(own.views, mapped.views, strict=True):
            view.copy_(mapped_view)
        mapped.close()
        taken = ExtendedMaster(own, master.added) if isinstance(master, ExtendedMaster) else own
        self.masters[self.masters.index(master)] = taken
        return taken

    def free(self, master: HostMaster) -> None:
        """Close a master and forget it."""
        master.close()
        self.masters.remove(master)


def _base(master: HostMaster) -> HostMaster:
    return master.base if isinstance(master, ExtendedMaster) else master


def _mappable_bytes(layout: SlabLayout, sources: Sequence[StoredBytes | None]) -> int:
    """Bytes of the tensors that lie in their file as they run."""
    pairs = zip(layout.specs, sources, strict=True)
    return sum(s.size_bytes for s, source in pairs if is_mappable(source, s.dtype))


def _mostly_mappable(layout: SlabLayout, sources: Sequence[StoredBytes | None]) -> bool:
    """Whether half of a unit's bytes or more lie in their file as they run."""
    return 2 * _mappable_bytes(layout, sources) >= layout.size_bytes > 0


def _where(layout: SlabLayout, sources: Sequence[StoredBytes | None]) -> str:
    """Say where weights lie that cannot be mapped, by the first of them."""
    pairs = zip(layout.specs, sources, strict=True)
    source, spec = next((s, spec) for spec, s in pairs if not is_mappable(s, spec.dtype))
    if source is None or source.path is None:
        return "these lie in memory, or in a file of another kind"
    if source.stored_dtype != spec.dtype:
        return f"{source.path} has {source.stored_dtype} where {spec.dtype} runs"
    return f"{source.path} has them where they cannot be mapped"


def _let_go(masters: list[HostMaster], device: torch.device) -> None:
    """Take back the registrations of a store that nobody holds any more."""
    if any(master.pinned and master.size_bytes for master in masters):
        if not torch.cuda.is_initialized():
            return
        on_gpu = device.type == "cuda"
        torch.cuda.synchronize(device if on_gpu else None)  # copies may be under way
    for master in masters:
        master.close()
