"""World: ranks that stay up while many claims are checked in them, one after the other."""

import os
import queue
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distributed.scripts import fork, free_port

TIMEOUT_S = 240


class World:
    """So many ranks of one process group, each of which runs what ``run`` is given.

    Args:
        size: number of ranks.
        backend: ``"gloo"`` (on the CPU) or ``"nccl"`` (rank r on ``cuda:r``).
        device: one for all ranks in place of that.
    """

    def __init__(self, size: int, backend: str, *, device: str | None = None) -> None:
        self.size = size
        self.backend = backend
        self._device = device
        self._processes: list[Any] = []

    def run(self, claim: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """Call ``claim(device, ...)`` on every rank and return what they return.

        A rank that fails makes it an AssertionError with its traceback. One that does not answer
        ends the world; the next claim gets another.
        """
        if not self._processes:
            self._start()
        for calls in self._calls:
            calls.put((claim, args, options))
        try:
            answers = [results.get(timeout=TIMEOUT_S) for results in self._results]
        except queue.Empty:
            self.close()
            raise AssertionError(f"a rank did not answer within {TIMEOUT_S} s") from None
        failures = [f"rank {r}: {a}" for r, (ok, a) in enumerate(answers) if not ok]
        if failures:
            self.close()  # its ranks may be out of step
            raise AssertionError("\n".join(failures))
        return [answer for _, answer in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _start(self) -> None:
        context = mp.get_context("forkserver")
        port = free_port()
        self._calls = [context.Queue() for _ in range(self.size)]
        self._results = [context.Queue() for _ in range(self.size)]
        for rank in range(self.size):
            ends = self._calls[rank], self._results[rank]
            device = self._device or (f"cuda:{rank}" if self.backend == "nccl" else "cpu")
            arguments = (rank, self.size, self.backend, port, device, *ends)
            self._processes.append(fork(_serve, *arguments))


def _serve(
    rank: int, size: int, backend: str, port: int, device_name: str, calls: Any, results: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, rank=rank, world_size=size)
    while True:
        claim, args, options = calls.get()
        try:
            results.put((True, claim(device, *args, **options)))
        except BaseException:
            results.put((False, traceback.format_exc()))
