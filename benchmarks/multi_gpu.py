"""Step time and memory of a denoiser over several GPUs: each way of holding and moving its weights.

    python -m benchmarks.multi_gpu --processes 2 --model wan-14b --frames 1,17,81

Starts one process for each GPU. The modes are measured one after the other; each also with context
parallel, where all processes compute one video. Before them a process on its own streams everything
(`streamed-one`), which is what several are compared with. Times and reserved memory are those of
the slowest and of the fullest process, host bytes those of all together, a file that they map
counted once. The difference is that to the first mode's output, the largest over the largest value;
0 is every bit. Set-up goes from the weights' file to a model that computes; making and connecting
the groups of processes belongs to launching and is told apart. ``setup`` in the JSON has the parts
of the first process's set-up, as the package's log names them, ``link_gb_s`` what the host brings
to each GPU.
"""

import json
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks import options
from benchmarks.links import measure_links
from benchmarks.machine import (
    Deadline,
    describe_machine,
    empty_caches,
    read_peak,
    reset_peak,
    synchronize,
    time_steps,
)
from benchmarks.row_table import Row, RowTable
from benchmarks.setup_parts import Parts, connect
from benchmarks.shapes import RandomWan, make_inputs, make_transformer, weight_bytes
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.offload import peers
from fastvideo_lightning.strategies.context import ContextParallel
from fastvideo_lightning.strategies.sharding import shard_denoiser

COLUMNS = ("mode", "frames", "step_ms", "reserved_gb", "host_gb", "setup_s", "difference")
ALONE = "streamed-one"
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
    """By one of our callbacks, in a batch as the predict loop would have it."""

    def attach(pipeline: Pipeline, device: torch.device) -> tuple[Held, Callable[[], None]]:
        callback = make()
        engine = callback.attach(pipeline, device).engine
        callback.on_predict_batch_start()

        def close() -> None:
            callback.on_predict_batch_end()
            callback.detach()

        if engine is None:
            return (0, 0), close
        mapped = engine.store.mapped_bytes
        return (engine.store.size_bytes - mapped, mapped), close

    return attach


def streamed(how: str, memory: str) -> Attach:
    """Blocks that all ranks stream, from one copy on the host."""
    return placed(lambda: LayerwiseOffload("transformer", host_memory=memory, shard_transport=how))


def meeting_by_flags(attach: Attach) -> Attach:
    """The same without a kernel that lets ranks wait for each other."""

    def attach_so(pipeline: Pipeline, device: torch.device) -> tuple[Held, Callable[[], None]]:
        peers.MEETS_BY_FLAGS = True
        try:
            return attach(pipeline, device)
        finally:
            peers.MEETS_BY_FLAGS = False

    return attach_so


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
    "streamed-flags": meeting_by_flags(streamed("gather", "mapped")),
    "streamed-local": streamed("local", "mapped"),
    "streamed-auto": streamed("auto", "mapped"),
    "fsdp-cpu-offload": fsdp(cpu_offload=True),
    "fsdp": fsdp(cpu_offload=False),
    "streamed-gather-pinned": streamed("gather", "pinned"),
}


def measure(mode: str, device: torch.device, settings: dict[str, Any]) -> list[Row]:
    """One mode on this rank, a row for each number of frames; all ranks get the same rows."""
    name, _, context = mode.partition("+")
    transformer = make_transformer(settings["model"], settings["folder"])
    pipeline = Pipeline(transformer)
    before = empty_caches(device)
    settings["parts"].take()
    begin = time.perf_counter()
    if context:
        size = dist.get_world_size()
        ContextParallel(size).enable(pipeline, size, device)
    held, close = MODES[name](pipeline, device)
    synchronize(device)
    setup_s = time.perf_counter() - begin
    settings["setup"][mode] = settings["parts"].take()
    rows = []
    for frames in settings["frames"]:
        inputs = make_inputs(transformer, frames, settings["size"], device=device)

        @torch.no_grad()
        def step(inputs: dict[str, torch.Tensor] = inputs) -> torch.Tensor:
            return transformer(**inputs, return_dict=False)[0]

        reset_peak(device)
        output = step().cpu()
        expected = settings["expected"].setdefault(frames, output)
        reserved = read_peak(device).reserved - before.reserved
        seconds = [time_steps(step, device) for _ in range(settings["rounds"])]
        mine = statistics.median(seconds), reserved, *held, setup_s, compare(output, expected)
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine)
        step_s, fullest, own, mapped, setup, differences = zip(*every, strict=True)
        host_gb = (sum(own) + max(mapped)) / 1e9
        figures = max(step_s) * 1e3, max(fullest) / 1e9, host_gb, max(setup), max(differences)
        rows.append(dict(zip(COLUMNS, (mode, frames, *figures), strict=True)))
    close()
    return rows


def compare(output: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value; 0 only where every bit is the same."""
    if torch.equal(output, expected):
        return 0.0
    output, expected = output.double(), expected.double()
    return float((output - expected).abs().max() / expected.abs().max())


def run_rank(rank: int, port: int, settings: dict[str, Any]) -> None:
    """What each process does; the first writes after every mode."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=settings["processes"],
        device_id=device if on_gpu else None,
    )
    if rank == 0:
        make_transformer(settings["model"], settings["folder"])  # writes the checkpoint
    dist.barrier()
    settings["parts"] = Parts()
    settings["expected"] = torch.load(settings["outputs"]) if settings["outputs"].exists() else {}
    table = settings["table"]
    table.facts["connect_s"] = connect(device)
    table.facts["link_gb_s"] = measure_links(device)
    table.facts["setup"] = settings["setup"]
    weights = weight_bytes(make_transformer(settings["model"], settings["folder"]))
    table.facts |= {"weight_bytes": weights, **describe_machine(device)}
    slowest_s = 0.0
    for mode in settings["modes"]:
        begin = time.monotonic()
        rows = measure(mode, device, settings)
        empty_caches(device)
        slowest_s = max(slowest_s, time.monotonic() - begin)
        if rank == 0:
            table.add("rows", *rows)
        goes_on = torch.tensor(int(settings["deadline"].allows(slowest_s)), device=device)
        dist.broadcast(goes_on, 0)
        if not goes_on:
            break
    if rank == 0:
        torch.save(settings["expected"], settings["outputs"])
    dist.destroy_process_group()


@click.command()
@click.option("--processes", default=2, show_default=True)
@options.model()
@options.frames()
@options.size()
@click.option("--modes", default="all", show_default=True, help="`resident,fsdp+context`, ...")
@click.option("--rounds", default=3, show_default=True)
@options.limit(540.0)
@options.name()
@options.folder
@options.output
def main(
    processes: int,
    model: str,
    frames: tuple[int, ...],
    size: tuple[int, int],
    modes: str,
    rounds: int,
    limit_s: float,
    name: str | None,
    folder: Path,
    output: Path,
) -> None:
    """Measure and write JSON and a Markdown table."""
    every = [*MODES, *(f"{mode}+context" for mode in MODES if mode != ALONE)]
    chosen = every if modes == "all" else modes.split(",")
    if unknown := [mode for mode in chosen if mode not in every]:
        raise click.BadParameter(f"no mode {unknown[0]!r}; there are {', '.join(every)}")
    facts = {"model": model, "size": list(size), "rounds": rounds, "processes": processes}
    path = output / f"{name or f'multi-gpu-{model}'}.json"
    table = RowTable(path, f"{processes} GPUs, {model}", facts)
    settings = {
        "model": model,
        "frames": frames,
        "size": size,
        "rounds": rounds,
        "folder": folder,
        "deadline": Deadline(limit_s),
        "table": table,
        "setup": {},
    }
    together = [mode for mode in chosen if mode != ALONE]
    with tempfile.TemporaryDirectory() as kept:
        settings["outputs"] = Path(kept) / "outputs.pt"
        if ALONE in chosen:
            spawn(1, settings | {"modes": [ALONE]})
            measured = json.loads(path.read_text())
            table.parts = {"rows": measured["rows"]}
            settings["setup"] = measured["setup"]
        if together:
            spawn(processes, settings | {"modes": together})


def spawn(processes: int, settings: dict[str, Any]) -> None:
    """Run so many processes, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run_rank, (port, settings | {"processes": processes}), nprocs=processes)


if __name__ == "__main__":
    main()
