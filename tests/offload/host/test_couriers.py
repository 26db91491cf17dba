"""Weights that wait in their file and are read on the way."""

import ctypes
import os
import queue
import random
import threading
import time

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from fastvideo_lightning.offload.blocks import deal
from fastvideo_lightning.offload.host import mapped
from fastvideo_lightning.offload.host.couriers import Couriers, WaitingCouriers
from fastvideo_lightning.offload.host.file_reads import (
    DIRECT_BYTES,
    FilePiece,
    FileReader,
    plan_reads,
    version_of,
)
from fastvideo_lightning.offload.host.slab import HostMemory
from fastvideo_lightning.offload.tensors.layout import ALIGNMENT_BYTES
from tests.support.toys import OnFile, make_toy, sample

pytestmark = pytest.mark.skipif(not mapped.IS_SUPPORTED, reason="couriers need /proc/self/pagemap")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def file(tmp_path):
    """A file of random bytes that ends in the middle of a sector."""
    path = tmp_path / "bytes"
    path.write_bytes(random.Random(0).randbytes(9 * DIRECT_BYTES + 77))
    return path


def reader_of(path):
    return FileReader(path, version_of(path.stat()))


def attach(model, kind=LayerwiseOffload, target="blocks", **options):
    callback = kind(target, host_memory="courier", **options)
    callback.attach(model, "cpu")
    return callback, callback.attachments[0].engine


@pytest.mark.parametrize(("kind", "target"), [(LayerwiseOffload, "blocks"), (ModelOffload, "")])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 1, 0]])
def test_what_is_read_on_the_way_equals_plain_and_is_held_nowhere(path, kind, target, order):
    plain = make_toy(4)
    model = OnFile(plain, path)
    callback, engine = attach(model, kind, target)
    in_memory = sum(ALIGNMENT_BYTES for _ in plain.buffers())
    assert engine.store.size_bytes < in_memory < sum(p.nbytes for p in plain.parameters())
    model.order = plain.order = order
    for _ in range(3):
        assert torch.equal(model(sample()), plain(sample()))
        engine.check()
    state, expected = model.state_dict(), plain.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    callback.detach()
    assert torch.equal(model(sample()), plain(sample()))
    assert path not in {name for name, _ in mapped._OPEN}


def test_an_edit_gives_a_unit_memory_of_its_own_and_leaves_the_file_alone(path):
    plain = make_toy(4, width=64)
    model = OnFile(plain, path)
    before = path.read_bytes()
    callback, engine = attach(model)
    for _ in range(2):
        assert torch.equal(model(sample(64)), plain(sample(64)))
        for toy in (model, plain):
            toy.blocks[1].up.weight.data.mul_(1.5)
    assert torch.equal(model(sample(64)), plain(sample(64)))
    assert not engine.units[1].slab.reads
    assert engine.units[3].slab.reads  # a neighbour may share a page with it
    assert path.read_bytes() == before
    callback.detach()
    assert torch.equal(model(sample(64)), plain(sample(64)))


def test_weights_in_no_file_cannot_be_read_on_the_way():
    with pytest.raises(ValueError, match="host_memory='courier' needs weights that lie in a safe"):
        attach(make_toy(4))


@pytest.mark.parametrize(
    ("counts", "kinds"),
    [
        ({"mapped": 2, "courier": 2}, ["mapped", "courier"] * 2),
        ({"mapped": 1, "courier": 3}, ["courier", "courier", "mapped", "courier"]),
        ({"mapped": 1, "courier": 1, "disk": 1}, None),
        ({"disk": 0, "mapped": 1}, None),
        ({"pinned": 9, "courier": 3}, None),
    ],
)
def test_each_kind_of_host_memory_has_its_share_of_the_blocks(path, counts, kinds):
    plain = make_toy(4)
    model = OnFile(plain, path)
    callback = LayerwiseOffload("blocks", host_memory=counts)
    callback.attach(model, "cpu")
    units = callback.attachments[0].engine.units
    got = [str(unit.host_memory) for unit in units]
    if kinds is not None:
        assert sorted(got) == sorted(kinds)
        assert got == kinds or got == kinds[::-1]
    for unit in units:
        assert bool(unit.slab.reads) == unit.host_memory.is_read
        assert all(r.direct == (unit.host_memory == "disk") for r in unit.slab.reads)
    for _ in range(2):
        assert torch.equal(model(sample()), plain(sample()))
    callback.detach()
    assert torch.equal(model(sample()), plain(sample()))


@pytest.mark.parametrize("num_blocks", [0, 1, 7, 40])
@pytest.mark.parametrize("counts", [(3, 4), (0, 5), (1, 1, 1), (20, 10, 10), (0, 0)])
def test_blocks_are_dealt_as_counted_and_those_that_are_over_to_the_first(num_blocks, counts):
    kinds = list(HostMemory)[: len(counts)]
    dealt = deal(num_blocks, dict(zip(kinds, counts, strict=True)))
    got = [dealt.count(kind) for kind in kinds]
    assert len(dealt) == num_blocks == sum(got)
    if num_blocks >= sum(counts):
        assert got[1:] == list(counts[1:])


@pytest.mark.parametrize("option", [{"cuda_graphs": True}, {"shard_transport": "gather"}])
def test_what_couriers_cannot_do_is_refused_at_construction(option):
    with pytest.raises(ValueError, match="host_memory='courier'"):
        LayerwiseOffload("blocks", host_memory="courier", **option)


def change(path):
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"changed")
    os.utime(path, ns=(1, 1))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [change, truncate])
@pytest.mark.parametrize("in_batch", [False, True])
def test_a_file_that_changes_under_way_is_an_error_with_its_name(path, damage, in_batch):
    model = OnFile(make_toy(4, width=256), path)
    callback, _ = attach(model)
    model(sample(256))
    if in_batch:
        callback.on_predict_batch_start()
        model(sample(256))
    damage(path)
    with pytest.raises(RuntimeError, match=r"model\.safetensors has changed since it was loaded"):
        model(sample(256))


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_that_loses_its_name_is_read_on(path, replace):
    plain = make_toy(4)
    model = OnFile(plain, path)
    attach(model)
    model(sample())
    path.unlink()
    if replace:
        path.write_bytes(b"another file")
    assert torch.equal(model(sample()), plain(sample()))


def test_reads_cover_every_byte_once_whatever_lies_where(file):
    rng, reader = random.Random(1), reader_of(file)
    contents = file.read_bytes()
    for _ in range(200):
        cuts = sorted(rng.sample(range(len(contents)), 8))
        ranges = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True) if b > a]
        offsets, end = [], 0
        for a, b in ranges:
            offsets.append(end + rng.choice([0, 0, 512]))
            end = offsets[-1] + b - a
        pieces = [FilePiece(reader, a, to, b - a) for (a, b), to in zip(ranges, offsets)]  # noqa: B905
        reads = plan_reads(pieces, max_bytes=2 * DIRECT_BYTES)
        assert all(r.size_bytes <= 2 * DIRECT_BYTES for r in reads)
        assert all(r.offset % DIRECT_BYTES == 0 for r in reads)
        slot = (ctypes.c_char * max(end, 1))()
        through_buffer = (ctypes.c_char * max(end, 1))()
        buffer = (ctypes.c_char * (3 * DIRECT_BYTES))()
        for read in reads:
            read.fill_slot(ctypes.addressof(slot))
            read.fill(ctypes.addressof(buffer))
            for run in read.runs:
                part = buffer[run.begin : run.begin + run.size_bytes]
                through_buffer[run.offset : run.offset + run.size_bytes] = part
        for (a, b), to in zip(ranges, offsets, strict=True):
            assert slot[to : to + b - a] == contents[a:b]
        assert slot.raw == through_buffer.raw


def test_direct_reads_give_the_same_bytes_to_the_end_of_the_file(file):
    reader, contents = reader_of(file), file.read_bytes()
    memory = torch.empty(12 * DIRECT_BYTES, dtype=torch.uint8)
    address = -(-memory.data_ptr() // DIRECT_BYTES) * DIRECT_BYTES
    for begin in range(10):
        size = len(contents) - begin * DIRECT_BYTES
        reader.read(address, begin * DIRECT_BYTES, size, direct=True)
        assert ctypes.string_at(address, size) == contents[begin * DIRECT_BYTES :]


class ThreadStream:
    """In place of the CUDA driver, which is not there: a thread does what a stream would."""

    def __init__(self):
        self._work = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def copy(self, to, source, num_bytes, stream):
        self._work.put(lambda: ctypes.memmove(to, source, num_bytes))

    def write(self, address, value, stream):
        self._work.put(lambda: ctypes.memmove(address, ctypes.byref(ctypes.c_int32(value)), 4))

    def wait(self, address, value, stream):
        count = ctypes.c_int32.from_address(address)

        def until():
            while count.value < value:
                time.sleep(1e-4)

        self._work.put(until)

    def synchronize(self):
        done = threading.Event()
        self._work.put(done.set)
        assert done.wait(20), "the stream waits for a read that does not come"

    def _run(self):
        while True:
            self._work.get()()


class SlowReader:
    """Reads a file, at times slowly, and fails where it is told to."""

    def __init__(self, reader, fails_at=None):
        self._reader, self._fails_at, self._rng = reader, fails_at, random.Random(2)
        self._number = 0

    def read(self, address, offset, size_bytes, *, direct=False):
        self._number += 1
        if self._number == self._fails_at:
            raise RuntimeError("the disk fails")
        time.sleep(self._rng.choice([0, 0, 0, 2e-3]))
        self._reader.read(address, offset, size_bytes, direct=direct)


def bring_all(couriers, stream, file, reader, repeats=1):
    pieces = [FilePiece(reader, begin, begin, 1000) for begin in range(0, 36000, 1000)]
    reads = plan_reads(pieces, max_bytes=DIRECT_BYTES)
    assert len(reads) > 8
    for _ in range(repeats):
        stream.slot = slot = torch.zeros(36000, dtype=torch.uint8)  # until the stream is through
        couriers.bring(reads, slot, 0)
        stream.synchronize()
        couriers.settle()
        assert bytes(slot.tolist()) == file.read_bytes()[:36000]


@pytest.mark.parametrize("num_readers", [1, 3])
def test_couriers_bring_every_byte_in_turn(file, num_readers):
    stream = ThreadStream()
    couriers = Couriers(
        stream, buffer_bytes=DIRECT_BYTES, num_buffers=3, num_readers=num_readers, pin=False
    )
    bring_all(couriers, stream, file, SlowReader(reader_of(file)), repeats=20)
    couriers.close()


def test_a_read_that_fails_leaves_no_stream_waiting_and_is_told(file):
    stream = ThreadStream()
    couriers = Couriers(stream, buffer_bytes=DIRECT_BYTES, num_buffers=3, num_readers=2, pin=False)
    for fails_at in (1, 4, 9):
        with pytest.raises(RuntimeError, match="the disk fails"):
            bring_all(couriers, stream, file, SlowReader(reader_of(file), fails_at=fails_at))
        assert couriers.is_broken
        stream.synchronize()
        couriers.recover()
        bring_all(couriers, stream, file, SlowReader(reader_of(file)), repeats=2)
    couriers.close()


@pytest.mark.parametrize("call", ["wait", "copy", "write"])
def test_an_interrupt_while_copies_are_enqueued_leaves_no_stream_waiting(file, call):
    stream = ThreadStream()
    couriers = Couriers(stream, buffer_bytes=DIRECT_BYTES, num_buffers=3, num_readers=2, pin=False)
    original, calls = getattr(stream, call), []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        original(*args)

    setattr(stream, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring_all(couriers, stream, file, SlowReader(reader_of(file)))
    stream.synchronize()
    couriers.recover()
    bring_all(couriers, stream, file, SlowReader(reader_of(file)), repeats=2)
    couriers.close()


def test_where_streams_cannot_wait_the_launching_thread_does(file, monkeypatch):
    monkeypatch.setattr("fastvideo_lightning.offload.host.couriers.BUFFER_BYTES", DIRECT_BYTES)
    stream, couriers = ThreadStream(), WaitingCouriers()
    bring_all(couriers, stream, file, SlowReader(reader_of(file)), repeats=2)
    with pytest.raises(RuntimeError, match="the disk fails"):
        bring_all(couriers, stream, file, SlowReader(reader_of(file), fails_at=4))
    bring_all(couriers, stream, file, SlowReader(reader_of(file)))


def test_couriers_end_their_threads_when_nobody_holds_them(file):
    before = set(threading.enumerate())
    couriers = Couriers(ThreadStream(), buffer_bytes=DIRECT_BYTES, num_buffers=2, pin=False)
    started = set(threading.enumerate()) - before
    assert len(started) > 1
    couriers.close()
    assert sum(thread.is_alive() for thread in started) == 1  # the stream's
