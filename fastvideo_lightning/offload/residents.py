"""ResidentSet: tensors that stay on one device for as long as they are attached."""

import os
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fastvideo_lightning.offload.host.mapped import (
    MappedFile,
    PrivateMappings,
    close_file,
    is_mappable,
    open_file,
)
from fastvideo_lightning.offload.tensors.autograd import lasting
from fastvideo_lightning.offload.tensors.bindings import TensorBinding, split_ties
from fastvideo_lightning.offload.tensors.layout import empty_host_tensor
from fastvideo_lightning.offload.tensors.leaves import find_leaves, rebuild
from fastvideo_lightning.offload.tensors.shown import is_lent
from fastvideo_lightning.offload.tensors.sources import WeightSource, find_source, source_spec

READ_THREADS = min(16, os.cpu_count() or 1)


class ResidentSet:
    """Ordinary tensors on a device: read there from their sources, or moved there.

    On the CPU, a weight that its file has in the dtype that it computes in is not read at all: it
    is mapped, privately, and the system keeps in memory the pages that are used.

    Args:
        bindings: the tensors.
        device: where they stay; the CPU for a component that computes there.
        run_device: the device of the run, which settles the dtype of what is still on meta.
    """

    def __init__(
        self, bindings: list[TensorBinding], device: torch.device, *, run_device: torch.device
    ) -> None:
        self.bindings = bindings
        self.device = device
        self.run_device = run_device
        self._files: dict[Path, MappedFile] = {}
        self._mappings = PrivateMappings()
        self._lock = threading.Lock()  # several weights of a file are placed at a time
        weakref.finalize(self, _close_all, self._files).atexit = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(
            leaf.numel() * leaf.element_size()
            for binding in split_ties(self.bindings)
            for leaf in find_leaves(binding.tensor, binding.fqn)
        )

    def load(self, sources: Mapping[str, WeightSource]) -> None:
        """Bring every tensor to the device, several at a time.

        Raises:
            RuntimeError: a tensor is on meta and has no source.
        """
        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(lambda binding: self._place(binding, sources), self.bindings))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # other threads' copies, before this one computes

    def refresh(self) -> None:
        """Bring tensors that replaced others since then to the device."""
        if is_lent():
            return
        self.bindings = split_ties(self.bindings)
        with lasting():
            for binding in self.bindings:
                move(binding, self.device)

    def keep_only(self, found: dict[int, TensorBinding]) -> None:
        """Keep only tensors that ``found`` has, by the tensor's id, and take them out of it."""
        mine = {id(r.registry.get(r.name)) for b in self.bindings for r in b.registrations}
        self.bindings = [found.pop(key) for key in list(found) if key in mine]

    def unload(self) -> None:
        """Leave ordinary host tensors in the module."""
        with lasting():
            for binding in split_ties(self.bindings):
                move(binding, torch.device("cpu"))
        _close_all(self._files)

    def _place(self, binding: TensorBinding, sources: Mapping[str, WeightSource]) -> None:
        tensor = binding.tensor
        if not tensor.is_meta:
            move(binding, self.device)
            return
        source = find_source(binding, sources)
        spec = source_spec(source, self.run_device, self.device)
        if self.device.type == "cpu" and is_mappable(source, spec.dtype):
            host = self._mappings.find(self._open(source)).view_at(source.offset, spec)
        else:
            host = empty_host_tensor(spec)
            source.read_into(host)
        binding.bind(rebuild(tensor, [host.to(self.device)]))

    def _open(self, source: WeightSource) -> MappedFile:
        path = source.path
        assert path is not None
        with self._lock:
            if path not in self._files:
                self._files[path] = open_file(path)
            return self._files[path]


def _close_all(files: dict[Path, MappedFile]) -> None:
    while files:
        close_file(files.popitem()[1])


def move(binding: TensorBinding, device: torch.device) -> None:
    """Bring a tensor to a device; a wrapper subclass, whose own device is fixed, is built anew."""
    tensor = binding.tensor
    if tensor.device == device or tensor.is_meta:  # it never arrived
        return
    leaves = find_leaves(tensor, binding.fqn)
    if leaves[0] is tensor:
        for leaf in leaves:
            leaf.data = leaf.detach().to(device)
    else:
        binding.bind(rebuild(tensor, [leaf.detach().to(device) for leaf in leaves]))
