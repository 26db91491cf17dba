import warnings

import pytest
import torch

from fastvideo_lightning.offload.host.slab import HostMemory
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec

LAYOUT = SlabLayout([TensorSpec.contiguous(torch.Size([1000]), torch.float32)])


def test_on_a_cpu_device_nothing_is_pinned():
    store = HostStore(torch.device("cpu"))
    slab = store.make(LAYOUT, [None], HostMemory.PINNED)
    store.pin(slab, HostMemory.PINNED)
    assert store.pinned_bytes == 0
    assert store.size_bytes == 4000


def test_freed_slabs_do_not_count_and_their_tensors_live_on():
    store = HostStore(torch.device("cpu"))
    slab = store.make(LAYOUT, [None], HostMemory.PINNED)
    slab.views[0].fill_(3)
    store.free(slab)
    assert store.size_bytes == 0
    assert slab.views[0].sum() == 3000


def test_where_pinning_is_refused_there_is_one_warning_with_the_reason(monkeypatch):
    class Driver:
        """Stands in for a driver that refuses: a machine without CUDA has none to ask."""

        def cudaHostRegister(self, *args):  # noqa: N802
            return 2

    monkeypatch.setattr(torch.cuda, "cudart", Driver)
    store = HostStore(torch.device("cuda"))
    slabs = [
        store.make(LAYOUT, [None], HostMemory.PINNED),
        store.make(LAYOUT, [None], HostMemory.PINNED),
    ]
    with pytest.warns(UserWarning, match="refuses to pin.*2.*ulimit -l"):
        store.pin(slabs[0], HostMemory.PINNED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.pin(slabs[1], HostMemory.PINNED)
    assert store.pinned_bytes == 0
