"""What the host brings to several GPUs at once, beside what it brings to one of them alone."""

import torch
import torch.distributed as dist

from benchmarks.harness import LinkProbe

REPEATS = 5


def measure_links(device: torch.device) -> dict[str, list[float]]:
    """GB per second that each rank copies from pinned memory, ``alone`` and ``together``.

    GPUs behind one switch or one memory controller share it: what they copy together is then less
    than the sum of what each copies alone, and bounds what shares of a model can gain.
    """
    probe = LinkProbe(device)
    alone = 0.0
    for turn in range(dist.get_world_size()):
        dist.barrier()
        if turn == dist.get_rank():
            alone = probe.rate(REPEATS) / 1e9
    dist.barrier()
    together = probe.rate(REPEATS) / 1e9
    probe.close()
    every: list[tuple[float, float]] = [(0.0, 0.0)] * dist.get_world_size()
    dist.all_gather_object(every, (alone, together))
    return {"alone": [rates[0] for rates in every], "together": [rates[1] for rates in every]}
