"""Several engines in one process, and a process that forks, on the CPU."""

import os
import signal
import threading

import torch

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.support.toys import OnFile, make_toy, sample


def test_two_models_stream_from_two_threads_at_the_same_time():
    toys = [make_toy(6, seed=seed) for seed in range(2)]
    expected = [make_toy(6, seed=seed)(sample()) for seed in range(2)]
    callbacks = [LayerwiseOffload("blocks") for _ in toys]
    for callback, toy in zip(callbacks, toys, strict=True):
        callback.attach(toy, "cpu")
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            wrong.extend(
                number
                for _ in range(30)
                if not torch.equal(toys[number](sample()), expected[number])
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for callback in callbacks:
        callback.attachments[0].engine.check()


def test_after_a_fork_parent_and_child_have_weights_of_their_own(tmp_path):
    toy, plain = OnFile(make_toy(4), tmp_path / "model.safetensors"), make_toy(4)
    callback = LayerwiseOffload("blocks", host_memory="mapped")
    callback.attach(toy, "cpu")
    expected = plain(sample())
    assert torch.equal(toy(sample()), expected)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.read(reading, 1)  # the parent has edited its weights by now
            torch.set_num_threads(1)  # a forked process has none of the threads of OpenMP's pool
            code = 0 if torch.equal(toy(sample()), expected) else 2
        finally:
            os._exit(code)
    for model in (toy, plain):
        model.blocks[2].up.weight.add_(0.5)
    assert torch.equal(toy(sample()), plain(sample()))
    os.write(writing, b"x")
    stop = threading.Timer(30, os.kill, (child, signal.SIGKILL))
    stop.start()
    status = os.waitpid(child, 0)[1]
    stop.cancel()
    assert os.waitstatus_to_exitcode(status) == 0
    assert not torch.equal(plain(sample()), expected)
    callback.detach()
