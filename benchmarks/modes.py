"""Ways of running a transformer that is larger than one would like: ours and the alternatives."""

from collections.abc import Callable

import torch

from benchmarks.shapes import RandomWan, streamed_bytes
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement

Mode = Callable[[RandomWan, torch.device], int]
"""Sets a model up; returns the bytes that it streams in every step."""


def place(callback: Placement, model: RandomWan, device: torch.device) -> int:
    """Attach one of our callbacks, in a batch as the predict loop would have it."""
    engine = callback.attach(model, device).engine
    callback.on_predict_batch_start()
    return sum(unit.size_bytes for unit in engine.units) if engine is not None else 0


def resident(model: RandomWan, device: torch.device) -> int:
    """All weights on the device."""
    return place(Resident(""), model, device)


def streamed(model: RandomWan, device: torch.device) -> int:
    """Two slots, pinned host masters."""
    return place(LayerwiseOffload("blocks", host_memory="pinned"), model, device)


def streamed_pageable(model: RandomWan, device: torch.device) -> int:
    """Two slots, pageable host masters: ``pin_cpu_memory=False``."""
    return place(LayerwiseOffload("blocks", host_memory="pageable"), model, device)


def streamed_mapped(model: RandomWan, device: torch.device) -> int:
    """Two slots, the checkpoint file as host master."""
    return place(LayerwiseOffload("blocks", host_memory="mapped"), model, device)


def streamed_with_residents(share: float) -> Mode:
    """Streaming with a share of the blocks resident."""

    def attach(model: RandomWan, device: torch.device) -> int:
        count = round(share * len(model.blocks))
        return place(
            LayerwiseOffload("blocks", resident_blocks=count, host_memory="pinned"), model, device
        )

    return attach


def group_offload(*, kind: str, record_stream: bool) -> Mode:
    """Diffusers' group offloading with a stream."""

    def attach(model: RandomWan, device: torch.device) -> int:
        load_on_host(model)
        model.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
            use_stream=True,
            record_stream=record_stream,
            non_blocking=True,
        )
        return streamed_bytes(model)

    return attach


def load_on_host(model: RandomWan) -> None:
    """Ordinary host weights, as a library's loader leaves them."""
    loader = Resident("")
    loader.attach(model, "cpu")
    loader.detach()


MODES: dict[str, Mode] = {
    "streamed": streamed,
    "streamed-mapped": streamed_mapped,
    "streamed-tenth-resident": streamed_with_residents(0.1),
    "streamed-half-resident": streamed_with_residents(0.5),
    "streamed-pageable": streamed_pageable,
    "group-block": group_offload(kind="block_level", record_stream=False),
    "group-block-record": group_offload(kind="block_level", record_stream=True),
    "group-leaf": group_offload(kind="leaf_level", record_stream=False),
    "group-leaf-record": group_offload(kind="leaf_level", record_stream=True),
    "resident": resident,
}
