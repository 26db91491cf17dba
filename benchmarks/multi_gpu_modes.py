"""The ways of holding and moving a denoiser's weights that `multi_gpu` compares."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks.models import RandomWan
from benchmarks.modes import attach_in_batch
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.strategies.fsdp import shard_denoiser

ALONE = "streamed-one"
"""The first rank computes, and the others are idle."""

Held = tuple[int, int]  # bytes of host memory of a process's own, and of files that it maps
Attach = Callable[["Pipeline", torch.device], tuple[Held, Callable[[], None]]]


class Pipeline(nn.Module):
    """A denoiser as the strategies want it: named, with its weights' places."""

    denoisers = ("transformer",)

    def __init__(self, transformer: RandomWan) -> None:
        super().__init__()
        self.transformer = transformer
        self.weight_sources = {
            f"transformer.{fqn}": source for fqn, source in transformer.weight_sources.items()
        }


def placed(make: Callable[[], Placement]) -> Attach:
    """By one of our callbacks."""

    def attach(pipeline: Pipeline, device: torch.device) -> tuple[Held, Callable[[], None]]:
        engine, close = attach_in_batch(make(), pipeline, device)
        if engine is None:
            return (0, 0), close
        mapped = engine.store.mapped_bytes
        return (engine.store.size_bytes - mapped, mapped), close

    return attach


def streamed(how: str, memory: str) -> Attach:
    """Blocks that all ranks stream, from one copy on the host."""
    return placed(lambda: LayerwiseOffload("transformer", host_memory=memory, shard_transport=how))


def fsdp(*, cpu_offload: bool) -> Attach:
    """FSDP2, its shards on the device or on the host."""

    def attach(pipeline: Pipeline, device: torch.device) -> tuple[Held, Callable[[], None]]:
        shard_denoiser(
            "transformer",
            pipeline.transformer,
            pipeline.weight_sources,
            mesh=init_device_mesh(device.type, (dist.get_world_size(),)),
            device=device,
            cpu_offload=cpu_offload,
            pin_memory=device.type == "cuda",
        )
        shards = [w for w in pipeline.transformer.parameters() if isinstance(w, DTensor)]
        local = (shard.to_local() for shard in shards)
        on_host = sum(part.nbytes for part in local if part.device.type == "cpu")
        return (on_host, 0), lambda: None

    return attach


MODES: dict[str, Attach] = {
    ALONE: streamed("local", "mapped"),
    "resident": placed(lambda: Resident("transformer")),
    "streamed-gather": streamed("gather", "mapped"),
    "streamed-local": streamed("local", "mapped"),
    "streamed-auto": streamed("auto", "mapped"),
    "fsdp-cpu-offload": fsdp(cpu_offload=True),
    "fsdp": fsdp(cpu_offload=False),
    "streamed-gather-pinned": streamed("gather", "pinned"),
}
