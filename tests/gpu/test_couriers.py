"""What only a GPU can show of weights that are read on their way: races, interrupts, refusals."""

import os
import random
import subprocess
import sys
import time

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from fastvideo_lightning.offload.host import file_reads, mapped, slab
from fastvideo_lightning.offload.host.couriers import WaitingCouriers
from fastvideo_lightning.offload.host.mapped import MappedSlab
from fastvideo_lightning.offload.stream_driver import StreamDriver
from tests.gpu import requires_gpu
from tests.gpu.streams import PoisoningStream, SleepingStream
from tests.support.toys import OnFile, make_toy, sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
WIDTH = 1024


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def expected():
    return make_toy(6, width=WIDTH).to(DEVICE)(x())


@pytest.fixture(autouse=True)
def small_reads(monkeypatch):
    """Blocks of 8 MiB come in many reads, as large blocks do."""
    monkeypatch.setattr(mapped, "BUFFER_BYTES", 1 << 20)


def x():
    return sample(WIDTH).to(DEVICE)


def attach(path, kind=LayerwiseOffload, target="blocks", **options):
    toy = OnFile(make_toy(6, width=WIDTH), path)
    callback = kind(target, **{"host_memory": "courier"} | options)
    callback.attach(toy, DEVICE)
    return toy, callback, callback.attachments[0].engine


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_blocks_read_on_their_way_equal_resident_ones_and_nothing_of_them_is_held(
    path, expected, num_slots
):
    toy, callback, engine = attach(path, num_slots=num_slots)
    for in_batch in (False, True):
        if in_batch:
            callback.on_predict_batch_start()
        for _ in range(3):
            assert torch.equal(toy(x()), expected)
            engine.check()
    callback.on_predict_batch_end()
    assert engine.store.size_bytes < 1 << 20
    assert engine.transport.couriers.size_bytes < 513 << 20
    callback.detach()
    assert torch.equal(toy.to(DEVICE)(x()), expected)


def test_a_component_is_read_on_its_way(path):
    toy, callback, _ = attach(path, ModelOffload, "")
    plain = make_toy(6, width=WIDTH).to(DEVICE)
    for _ in range(3):
        assert torch.equal(toy(x()), plain(x()))
    callback.detach()


class SlowReader(file_reads.FileReader):
    """Takes its time now and then, so that a missing wait shows."""

    def read(self, *args, **options):
        if random.random() < 0.3:
            time.sleep(random.choice([1e-4, 3e-3]))
        super().read(*args, **options)


@pytest.mark.parametrize("transport", [PoisoningStream, SleepingStream])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 3, 0, 1, 4, 2], [2, 0, 2, 1, 2]])
def test_no_slot_is_read_late_or_early(path, monkeypatch, transport, order):
    monkeypatch.setattr("fastvideo_lightning.offload.host.mapped.FileReader", SlowReader)
    toy, callback, engine = attach(path)
    plain = make_toy(6, width=WIDTH).to(DEVICE)
    toy.order = plain.order = order
    engine.transport = transport(DEVICE)
    callback.on_predict_batch_start()
    outputs = [toy(x()) for _ in range(10)]
    callback.on_predict_batch_end()
    assert all(torch.equal(output, plain(x())) for output in outputs)


def test_the_launching_thread_waits_for_no_read(path, monkeypatch):
    """A pass is enqueued while its first read has not come back."""

    class Held(file_reads.FileReader):
        may_read = True

        def read(self, *args, **options):
            while not Held.may_read:
                time.sleep(1e-3)
            super().read(*args, **options)

    monkeypatch.setattr("fastvideo_lightning.offload.host.mapped.FileReader", Held)
    toy, callback, _ = attach(path)
    inputs = x()
    toy(inputs)  # kernels are loaded at their first launch, which waits for the device
    callback.on_predict_batch_start()
    toy(inputs)
    torch.cuda.synchronize()
    Held.may_read = False
    output = toy(inputs)
    Held.may_read = True
    assert torch.equal(output, make_toy(6, width=WIDTH).to(DEVICE)(inputs))
    callback.on_predict_batch_end()


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_read_that_fails_ends_the_run_with_the_files_name_and_the_next_one_is_right(
    path, expected, in_batch
):
    toy, callback, _ = attach(path)
    toy(x())
    status = path.stat()
    for _ in range(2):
        os.utime(path, ns=(1, 1))
        if in_batch:
            callback.on_predict_batch_start()
            toy(x())
        with pytest.raises(RuntimeError, match=r"model\.safetensors has changed"):
            callback.on_predict_batch_end() if in_batch else toy(x())
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert torch.equal(toy(x()), expected)


def test_an_edit_moves_a_unit_to_memory_of_its_own(path):
    toy, callback, engine = attach(path)
    plain = make_toy(6, width=WIDTH).to(DEVICE)
    assert torch.equal(toy(x()), plain(x()))
    toy.blocks[1].up.weight.data.mul_(1.5)
    plain.blocks[1].up.weight.data.mul_(1.5)
    assert torch.equal(toy(x()), plain(x()))
    assert not engine.units[1].slab.reads
    callback.detach()


@pytest.mark.parametrize("host_memory", ["auto", "mapped"])
def test_where_registering_is_refused_the_file_is_read_on_its_way(
    path, expected, monkeypatch, host_memory
):
    def refuse(part, flags=0):
        raise RuntimeError("cudaHostRegister: 801")

    monkeypatch.setattr("fastvideo_lightning.offload.host.mapped.register", refuse)
    with pytest.warns(UserWarning, match="read anew for each pass") as warned:
        toy, callback, engine = attach(path, host_memory=host_memory)
    assert len(warned) == 1
    assert all(isinstance(unit.slab, MappedSlab) and unit.slab.reads for unit in engine.units)
    assert torch.equal(toy(x()), expected)
    callback.detach()


@pytest.mark.parametrize("what", ["pinning", "waiting"])
def test_where_the_system_refuses_the_launching_thread_reads(path, expected, monkeypatch, what):
    def refuse(*args):
        raise RuntimeError("refused")

    if what == "pinning":
        monkeypatch.setattr(slab, "register", refuse)
    else:
        monkeypatch.setattr(StreamDriver, "wait", refuse)
    toy, callback, engine = attach(path)
    with pytest.warns(UserWarning, match="refuses pinned buffers"):
        toy(x())
    for _ in range(2):
        assert torch.equal(toy(x()), expected)
    assert isinstance(engine.transport.couriers, WaitingCouriers)
    callback.detach()


@pytest.mark.parametrize(
    "counts", [{"mapped": 2, "courier": 4}, {"auto": 2, "courier": 2, "disk": 2}]
)
def test_of_a_file_that_is_held_in_part_no_more_is_registered(path, expected, counts):
    toy, callback, engine = attach(path, host_memory=counts)
    held = [unit for unit in engine.units if not unit.slab.reads]
    assert len(held) == 2
    file = held[0].slab.ranges[0][0]
    registered = sum(chunk.numel() for chunk in file._chunks)
    assert registered <= sum(unit.size_bytes for unit in held) + 2 * len(held) * (1 << 20)
    callback.on_predict_batch_start()
    for _ in range(3):
        assert torch.equal(toy(x()), expected)
    callback.on_predict_batch_end()
    callback.detach()
    assert torch.equal(toy.to(DEVICE)(x()), expected)


def test_a_captured_pass_cannot_read_files(path):
    with pytest.raises(ValueError, match="cuda_graphs=True cannot be combined"):
        attach(path, cuda_graphs=True)


ENDS = """
import sys, torch
from pathlib import Path
from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.support.toys import OnFile, make_toy, sample
toy = OnFile(make_toy(6, width=1024), Path(sys.argv[1]))
callback = LayerwiseOffload("blocks", host_memory="courier")
callback.attach(toy, "cuda")
callback.on_predict_batch_start()
toy(sample(1024).cuda())
if sys.argv[2] == "raise":
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize("how", ["end", "raise"])
def test_a_process_ends_while_copies_are_under_way(path, how):
    ended = subprocess.run(
        [sys.executable, "-c", ENDS, str(path), how], timeout=120, check=False, cwd=os.getcwd()
    )
    assert (ended.returncode == 0) == (how == "end")
