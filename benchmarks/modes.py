"""Ways of running a transformer that is larger than one would like: ours and the alternatives."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from benchmarks.harness import pinned_by_torch
from benchmarks.models import RandomWan, streamed_bytes, weight_bytes
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.modules.acceleration import compile_blocks
from fastvideo_lightning.offload.engine import OffloadEngine

OURS_BYTES_PER_S, PEERS_BYTES_PER_S = 2e9, 5e8


@dataclass
class Placed:
    """A model that a mode has set up.

    Attributes:
        streamed_bytes: what it copies to the device in every step.
        host_bytes: what it holds on the host, pinned or mapped or as it is.
        host_weight_bytes: bytes of the weights that are kept there.
        close: takes it down.
    """

    streamed_bytes: int = 0
    host_bytes: int = 0
    host_weight_bytes: int = 0
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Mode:
    """One way to run a model.

    Attributes:
        attach: sets a model up.
        beside: the mode that it is compared with: how fast it would be with all weights there.
        like: the mode whose output it is to give, bit for bit.
        party: modes of one party are in memory at the same time, beside the resident one.
        needs_gpu: whether it cannot be tried on a CPU.
        setup_bytes_per_s: the slowest that it was seen to be set up, for knowing whether there is
            time for it.
    """

    attach: Callable[[RandomWan, torch.device], Placed]
    beside: str = "resident"
    like: str = "resident"
    party: str = "ours"
    needs_gpu: bool = False
    setup_bytes_per_s: float = OURS_BYTES_PER_S


def attach_in_batch(
    callback: Placement, model: nn.Module, device: torch.device
) -> tuple[OffloadEngine | None, Callable[[], None]]:
    """Attach one of our callbacks, in a batch as the predict loop would have it.

    Returns:
        Its engine, where it has one, and what takes it down.
    """
    engine = callback.attach(model, device).engine
    callback.on_predict_batch_start()

    def close() -> None:
        callback.on_predict_batch_end()
        callback.detach()

    return engine, close


def place(callback: Placement, model: RandomWan, device: torch.device) -> Placed:
    """Attach one of our callbacks."""
    engine, close = attach_in_batch(callback, model, device)
    if engine is None:
        return Placed(close=close)
    names = tuple(f"{unit.fqn}." for unit in engine.units)
    on_host = sum(
        source.shape.numel() * source.stored_dtype.itemsize
        for fqn, source in model.weight_sources.items()
        if fqn.startswith(names)
    )
    moved = sum(unit.size_bytes for unit in engine.units)
    return Placed(moved, engine.store.size_bytes, on_host, close)


def resident(model: RandomWan, device: torch.device) -> Placed:
    """All weights on the device."""
    return place(Resident(""), model, device)


def graphed_resident(model: RandomWan, device: torch.device) -> Placed:
    """All weights on the device, a step repeated by it."""
    return place(Resident("", cuda_graphs=True), model, device)


def streamed(
    host_memory: str | dict[str, int],
    *,
    resident_share: float = 0.0,
    num_slots: int = 2,
    cuda_graphs: bool = False,
) -> Mode:
    """That kind of host memory, so many slots, and a share of the blocks resident."""

    def attach(model: RandomWan, device: torch.device) -> Placed:
        count = round(resident_share * len(model.blocks))
        callback = LayerwiseOffload(
            "blocks",
            resident_blocks=count,
            host_memory=host_memory,
            num_slots=num_slots,
            cuda_graphs=cuda_graphs,
        )
        return place(callback, model, device)

    return Mode(attach)


def compiled(mode: Mode, *, beside: str) -> Mode:
    """The same with every block compiled; blocks of one kind share their graphs."""

    def attach(model: RandomWan, device: torch.device) -> Placed:
        placed = mode.attach(model, device)
        torch._dynamo.config.recompile_limit = 64  # for each number of frames, in two modes
        compile_blocks(model, "")
        return placed

    return Mode(attach, beside=beside, like=beside, party="compiled", needs_gpu=True)


def group_offload(party: str, *, kind: str, record_stream: bool) -> Mode:
    """Diffusers' group offloading with a stream."""

    def attach(model: RandomWan, device: torch.device) -> Placed:
        before = pinned_by_torch()
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
        return Placed(streamed_bytes(model), pinned_by_torch() - before, weight_bytes(model))

    return Mode(attach, party=party, needs_gpu=True, setup_bytes_per_s=PEERS_BYTES_PER_S)


def sequential_offload(model: RandomWan, device: torch.device) -> Placed:
    """Accelerate's offload of every leaf for itself: ``enable_sequential_cpu_offload``."""
    from accelerate import cpu_offload

    load_on_host(model)
    cpu_offload(model, execution_device=device)
    return Placed(weight_bytes(model), weight_bytes(model), weight_bytes(model))


def model_offload(model: RandomWan, device: torch.device) -> Placed:
    """Accelerate's offload of whole models: ``enable_model_cpu_offload``; in once per video."""
    from accelerate import cpu_offload_with_hook

    load_on_host(model)
    cpu_offload_with_hook(model, device)
    return Placed(0, weight_bytes(model), weight_bytes(model))


def load_on_host(model: RandomWan) -> None:
    """Ordinary host weights, as a library's loader leaves them."""
    loader = Resident("")
    loader.attach(model, "cpu")
    loader.detach()


MODES: dict[str, Mode] = {
    "resident": Mode(resident),
    "streamed-mapped": streamed("mapped"),
    "streamed-pinned": streamed("pinned"),
    "streamed-courier": streamed("courier"),
    "streamed-disk": Mode(
        streamed("disk").attach, party="disk", setup_bytes_per_s=OURS_BYTES_PER_S
    ),
    "streamed-held-in-part": Mode(streamed({"mapped": 23, "disk": 17}).attach, party="disk"),
    "streamed-half-resident": streamed("mapped", resident_share=0.5),
    "streamed-tenth-resident": streamed("mapped", resident_share=0.1),
    "streamed-three-slots": streamed("mapped", num_slots=3),
    "streamed-three-slots-tenth-resident": streamed("mapped", resident_share=0.1, num_slots=3),
    "graphed-resident": Mode(graphed_resident, beside="graphed-resident", party="graphed"),
    "graphed-streamed": Mode(
        streamed("mapped", cuda_graphs=True).attach, beside="graphed-resident", party="graphed"
    ),
    "compiled-resident": compiled(Mode(resident), beside="compiled-resident"),
    "compiled-streamed": compiled(streamed("mapped"), beside="compiled-resident"),
    "group-block-record": group_offload("gbr", kind="block_level", record_stream=True),
    "group-leaf-record": group_offload("glr", kind="leaf_level", record_stream=True),
    "group-block": group_offload("gb", kind="block_level", record_stream=False),
    "group-leaf": group_offload("gl", kind="leaf_level", record_stream=False),
    "streamed-pageable": Mode(streamed("pageable").attach, party="pageable"),
    "model-offload": Mode(model_offload, party="model", setup_bytes_per_s=PEERS_BYTES_PER_S),
    "sequential-offload": Mode(
        sequential_offload, party="sequential", setup_bytes_per_s=PEERS_BYTES_PER_S
    ),
}
"""In the order in which they are measured: what matters most comes first."""
