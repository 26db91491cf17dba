"""Orders that change, engines side by side, interrupts, forks and refusals: still bit for bit."""

import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.gpu import requires_gpu
from tests.gpu.streams import PoisoningStream, SleepingStream
from tests.support.interrupter import Interrupter
from tests.support.toys import OnFile, Toy, make_toy, sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
WIDTH = 1024
ROOT = Path(__file__).resolve().parents[2]


def wide(*, seed: int = 0) -> Toy:
    return make_toy(6, width=WIDTH, seed=seed)


def wide_sample() -> torch.Tensor:
    return sample(WIDTH).to(DEVICE)


def attach(toy: Toy, **options) -> LayerwiseOffload:
    callback = LayerwiseOffload("blocks", **options)
    callback.attach(toy, DEVICE)
    return callback


def engine_in(callback: LayerwiseOffload):
    return callback.attachments[0].engine


@pytest.mark.parametrize("transport", [PoisoningStream, SleepingStream])
@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_an_order_that_is_shuffled_before_every_forward_is_right(transport, num_slots):
    toy, plain = wide(), wide().to(DEVICE)
    callback = attach(toy, num_slots=num_slots)
    engine_in(callback).transport = transport(DEVICE)
    rng, pairs = random.Random(num_slots), []
    callback.on_predict_batch_start()
    for _ in range(20):
        toy.order = plain.order = [rng.randrange(6) for _ in range(rng.randint(1, 14))]
        pairs.append((toy(wide_sample()), plain(wide_sample())))
    callback.on_predict_batch_end()
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_two_engines_share_a_gpu_in_turns_and_from_two_threads():
    toys = [wide(seed=seed) for seed in range(2)]
    expected = [wide(seed=seed).to(DEVICE)(wide_sample()) for seed in range(2)]
    callbacks = [attach(toy) for toy in toys]
    engines = [engine_in(callback) for callback in callbacks]
    assert engines[0] is not engines[1]
    for engine in engines:
        engine.transport = SleepingStream(DEVICE)
    for callback in callbacks:
        callback.on_predict_batch_start()
    for _ in range(5):
        for toy, right in zip(toys, expected, strict=True):
            assert torch.equal(toy(wide_sample()), right)
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)), torch.no_grad():
            x = wide_sample()
            outputs = [toys[number](x) for _ in range(10)]
            torch.cuda.current_stream(DEVICE).synchronize()
            wrong.extend(number for y in outputs if not torch.equal(y, expected[number]))

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_after_an_interrupt_at_any_line_of_the_engine_the_next_forward_is_right():
    expected, rng = wide().to(DEVICE)(wide_sample()), random.Random(0)
    toy = wide()
    callback = attach(toy)
    engine_in(callback).transport = PoisoningStream(DEVICE)
    for _ in range(60):
        callback.on_predict_batch_start()
        with suppress(KeyboardInterrupt), Interrupter(rng.randint(1, 1500)):
            toy(wide_sample())
        callback.on_exception()
        engine_in(callback).check()
        assert torch.equal(toy(wide_sample()), expected)


def test_after_a_signal_at_any_moment_the_next_forward_is_right():
    """A timer of the process's own time: the other one is what a test's time limit uses."""
    expected, rng = wide().to(DEVICE)(wide_sample()), random.Random(1)
    toy = wide()
    callback = attach(toy)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, interrupt)
    interrupted = 0
    try:
        for _ in range(40):
            callback.on_predict_batch_start()
            try:
                signal.setitimer(signal.ITIMER_VIRTUAL, rng.uniform(1e-3, 2e-2))
                for _ in range(200):
                    toy(wide_sample())
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            callback.on_exception()
            assert torch.equal(toy(wide_sample()), expected)
    finally:
        signal.signal(signal.SIGVTALRM, before)
    assert interrupted > 0


@pytest.mark.parametrize("host_memory", ["pinned", "mapped"])
def test_a_fork_leaves_the_parent_right_and_the_child_with_the_weights(host_memory, tmp_path):
    plain = wide()
    toy = OnFile(wide(), tmp_path / "model.safetensors")
    callback = attach(toy, host_memory=host_memory)
    toy(wide_sample())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            os.read(reading, 1)  # the parent has edited its weights by now
            torch.set_num_threads(1)  # the parent's threads are not there
            same = torch.equal(toy.blocks[2].up.weight, plain.blocks[2].up.weight)
            try:
                toy(sample(WIDTH))
            except RuntimeError:  # torch: CUDA cannot be used in a forked process
                code = 0 if same else 2
        os._exit(code)
    for model in (toy, plain):
        model.blocks[2].up.weight.add_(0.5)
    edited = plain.to(DEVICE)(wide_sample())
    assert torch.equal(toy(wide_sample()), edited)
    plain.cpu().blocks[2].up.weight.sub_(0.5)
    os.write(writing, b"x")
    stop = threading.Timer(20, os.kill, (child, signal.SIGKILL))
    stop.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    stop.cancel()
    assert code == 0
    assert torch.equal(toy(wide_sample()), edited)
    callback.detach()


@pytest.mark.parametrize("host_memory", ["pinned", "auto"])
def test_where_registration_is_refused_results_are_the_same(host_memory, tmp_path, monkeypatch):
    """The refusal is played: a driver of one's own cannot be made to refuse."""
    real = torch.cuda.cudart()

    class Driver:
        def cudaHostRegister(self, *args):  # noqa: N802
            return 2

        def __getattr__(self, name):
            return getattr(real, name)

    toy, plain = OnFile(wide(), tmp_path / "model.safetensors"), wide().to(DEVICE)
    monkeypatch.setattr(torch.cuda, "cudart", Driver)
    with pytest.warns(UserWarning, match="The system refuses to"):
        callback = attach(toy, host_memory=host_memory)
    assert engine_in(callback).store.pinned_bytes == 0
    callback.on_predict_batch_start()
    for _ in range(3):
        assert torch.equal(toy(wide_sample()), plain(wide_sample()))
    callback.on_predict_batch_end()
    callback.detach()


LIMITED = """
import os, resource, sys, warnings
import torch
from tests.gpu.test_faults import DEVICE, attach, engine_in, wide, wide_sample
limit = 1 << 16
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
toy, plain = wide(), wide()
os.setuid(65534)  # the limit does not bind root
try:
    torch.cuda.init()
except Exception as error:
    sys.exit(f"no device for another user: {error}")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    callback = attach(toy, host_memory="pinned")
refused = [str(w.message) for w in said if "The system refuses to pin" in str(w.message)]
pinned = engine_in(callback).store.pinned_bytes
assert torch.equal(toy(wide_sample()), plain.to(DEVICE)(wide_sample()))
assert len(refused) == 1 if pinned == 0 else not refused
print("right,", "refused" if refused else "pinned")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user with a limit")
def test_under_a_limit_of_locked_memory_a_refusal_is_said_once_and_results_are_the_same():
    """Whether the driver heeds the limit is its own affair."""
    command = [sys.executable, "-c", LIMITED]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if "no device for another user" in run.stderr or "PermissionError" in run.stderr:
        pytest.skip("no CUDA device, or no Python, for a user who is not root")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("right,")
