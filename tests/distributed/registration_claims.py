"""What each rank of a world registers with a driver; the driver is played, there is no GPU."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from distributed.streaming_claims import engine_in, fast_links, joined, make_kind
from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.distributed import shard_plan
from fastvideo_lightning.offload.host import mapped
from fastvideo_lightning.offload.host.mapped import MappedSlab
from fastvideo_lightning.offload.host.store import HostStore
from tests.support.toys import make_toy, sample

PAGE = mmap.PAGESIZE
WIDTH = 160


class Driver:
    """Plays the CUDA driver: knows what is registered, and refuses what the real one would."""

    def __init__(self, refuses: bool = False) -> None:
        self.live: dict[int, int] = {}
        self.refuses = refuses

    def cudaHostRegister(self, address, size, flags):  # noqa: N802
        if self.refuses and flags:
            return 801
        assert size > 0
        assert address % PAGE == 0 or not flags, "a file is registered by pages"
        for begin, length in self.live.items():
            apart = address >= _up(begin + length) or _up(address + size) <= begin
            assert apart or not flags, "a page is registered twice"
        self.live[address] = size
        return 0

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.live[address]
        return 0

    def check(self, part: torch.Tensor) -> None:
        """Assert that a copy of these bytes is the driver's own: all in one registration."""
        begin, end = part.data_ptr(), part.data_ptr() + part.numel()
        assert any(b <= begin and end <= b + length for b, length in self.live.items())


def _up(address: int) -> int:
    return -(-address // PAGE) * PAGE


@contextmanager
def played(**options) -> Iterator[Driver]:
    driver = Driver(**options)
    has_driver = property(lambda _: True, lambda *_: None)
    with (
        mock.patch.object(HostStore, "_has_driver", has_driver, create=True),
        mock.patch.object(torch.cuda, "cudart", return_value=driver),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(mapped, "GAP_BYTES", 0),
        mock.patch.object(shard_plan, "CHUNK_BYTES", 1 << 15),
    ):
        yield driver


def attached(kind, path, how, **options):
    plain = make_toy(4, width=WIDTH)
    model = make_kind(kind, plain, path)
    memory = {"host_memory": "mapped"} if kind == "file" else {}
    callback = LayerwiseOffload("blocks", shard_transport=how, **memory, **options)
    callback.attach(model, torch.device("cpu"))
    return plain, model, callback


def check_copies(callback, driver):
    """Assert that all that copies bring is registered; return how much that is."""
    engine = engine_in(callback)
    shared, brought = engine.transport.shared, 0
    for unit in engine.units:
        found = shared.find(unit.slab)
        segments = unit.slab.segments
        if found is not None:
            segments = [*(s for chunk in found.chunks for s in chunk.segments), *found.rest]
        for part, _ in segments:
            driver.check(part)
            brought += part.numel()
    return brought


def assert_equal(model, plain):
    x = sample(WIDTH)
    assert torch.equal(model(x), plain(x))


def each_registers_the_pages_of_its_parts(device, kind, path):
    with played() as driver:
        plain, model, callback = attached(kind, path, "gather")
        size = sum(unit.size_bytes for unit in engine_in(callback).units)
        registered = sum(driver.live.values())
        assert_equal(model, plain)
        brought = check_copies(callback, driver)
        assert brought < 1.1 * size / dist.get_world_size()
        pieces = len(driver.live)
        assert brought <= registered <= brought + 2 * PAGE * pieces
        assert pieces < size / (1 << 15) + 8
        callback.detach()
        assert not driver.live


def what_is_brought_as_a_whole_is_registered_as_a_whole(device, kind, path):
    """One rank edits a block: all ranks bring it as a whole from then on."""
    with played() as driver:
        plain, model, callback = attached(kind, path, "gather")
        assert_equal(model, plain)
        before = sum(driver.live.values())
        if dist.get_rank() == 1:
            for toy in (model, plain):
                toy.blocks[1].up.weight.data.mul_(2.0)
        for _ in range(2):
            assert_equal(model, plain)
        engine = engine_in(callback)
        assert engine.transport.shared.find(engine.units[1].slab) is None
        check_copies(callback, driver)
        if dist.get_rank() == 0:
            assert sum(driver.live.values()) > before
        callback.detach()
        assert not driver.live


def what_links_are_fast_enough_for_is_registered_as_a_whole(device, kind, path):
    with played() as driver, fast_links():
        plain, model, callback = attached(kind, path, "auto")
        for _ in range(2):
            before = joined(callback)
            callback.on_predict_batch_start()
            for _ in range(4):
                assert_equal(model, plain)
            check_copies(callback, driver)
            callback.on_predict_batch_end()
        assert joined(callback) == before
        callback.detach()
        assert not driver.live


def alone_or_apart_all_is_registered(device, path):
    with played() as driver:
        plain, model, callback = attached("file", path, "local")
        for unit in engine_in(callback).units:
            for part, _ in unit.slab.segments:
                driver.check(part)
        assert_equal(model, plain)
        callback.detach()
        assert not driver.live


def another_that_copies_all_of_the_file_has_all_registered(device, path):
    """As a second engine on the same file does, which streams by itself."""
    with played() as driver:
        plain, model, callback = attached("file", path, "gather")
        units, before = engine_in(callback).units, len(driver.live)
        for unit in units:  # of the checkpoint's file, and of the one in memory that ranks share
            unit.slab.pin()
        for unit in units:
            for part, _ in unit.slab.segments:
                driver.check(part)
        assert len(driver.live) < before
        assert_equal(model, plain)
        callback.detach()
        assert not driver.live


def where_files_are_refused_each_has_memory_of_its_own(device, path):
    with played(refuses=True) as driver:
        with pytest.warns(UserWarning, match="refuses to register the checkpoint's file.*801"):
            plain, model, callback = attached("file", path, "gather")
        engine = engine_in(callback)
        assert not any(isinstance(unit.slab, MappedSlab) for unit in engine.units)
        assert engine.store.pinned_bytes == engine.store.size_bytes
        assert_equal(model, plain)
        check_copies(callback, driver)
        callback.detach()
        assert not driver.live
