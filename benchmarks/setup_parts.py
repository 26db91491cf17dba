"""Where the time of a set-up goes, and what of starting several processes is not part of it."""

import logging
import time

import torch

from benchmarks.harness import synchronize
from fastvideo_lightning.offload.distributed.process_group import find_shard_group


class Parts(logging.Handler):
    """The parts of a set-up, as they are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        log = logging.getLogger("fastvideo_lightning.offload.profiling")
        log.setLevel(logging.DEBUG)
        log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


def connect(device: torch.device) -> float:
    """Make the groups that streaming uses and let each be used once; returns the seconds."""
    begin = time.perf_counter()
    if shards := find_shard_group(device):
        whole = torch.zeros(shards.size * 4096, dtype=torch.uint8, device=device)
        shards.join(whole, whole[shards.rank * 4096 :][:4096])
        synchronize(device)
        shards.exchange(None)
    return time.perf_counter() - begin
