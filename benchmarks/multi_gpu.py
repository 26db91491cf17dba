"""Step time and memory of a denoiser over several GPUs: each way of holding and moving its weights.

    python -m benchmarks.multi_gpu --processes 2 --model wan-14b --frames 1,17,81

Starts one process for each GPU. Modes are set up, one after the other, each also with context
parallel, where all processes compute one video; then each is timed in every round, so that what
changes on the machine meets all of them. Where not all fit on the device at once, the others follow
when these are done. One that streams is closed behind its set-up and opened again for the rounds: a
process registers a file once, and a second mode would find it registered. In `streamed-one` the
first process streams everything and the others are idle in the rounds, which is what several are
compared with; `streamed-auto` is in its first run all along, of which it does not know yet whether
blocks could come as a whole. ``step_ms`` is the median of the rounds. Times and reserved memory are
those of the slowest and of the fullest process, host bytes those of all together, a file that they
map counted once. The difference is that to the first mode's output, the largest over the largest
value; 0 is every bit. Set-up goes from the weights' file to a model that computes; making and
connecting the groups of processes belongs to launching and is told apart. ``setup`` in the JSON has
the parts of the first process's set-up, as the package's log names them, ``link_gb_s`` what the
host brings to each GPU.

What the host brings to several GPUs at once, beside what it brings to one of them alone.

Where the time of a set-up goes, and what of starting several processes is not part of it.

The ways of holding and moving a denoiser's weights that `multi_gpu` compares.
"""

import logging
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks import harness
from benchmarks.harness import (
    Deadline,
    LinkProbe,
    attach_in_batch,
    describe_machine,
    empty_caches,
    read_peak,
    reset_peak,
    synchronize,
    time_steps,
)
from benchmarks.models import RandomWan, make_inputs, make_transformer, weight_bytes
from benchmarks.report import Row, RowTable
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.offload.distributed.process_group import find_shard_group
from fastvideo_lightning.strategies.context_parallel import ContextParallel
from fastvideo_lightning.strategies.fsdp import shard_denoiser

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
        shards.all_gather(None)
    return time.perf_counter() - begin


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


COLUMNS = (
    *("mode", "frames", "step_ms", "fastest_ms", "slowest_ms"),
    *("reserved_gb", "host_gb", "setup_s", "difference"),
)

ROOM_TO_WORK = 10 << 30
"""Device memory for a step of 14B at 81 frames, with some to spare."""


class Contender:
    """One mode on this rank, ready to compute; all ranks make the same calls.

    Args:
        mode: of `MODES`, with `+context` where all ranks compute one video.
        device: this rank's.
        settings: of the run.
    """

    def __init__(self, mode: str, device: torch.device, settings: dict[str, Any]) -> None:
        self.mode, self._device, self._settings = mode, device, settings
        self._computes = mode != ALONE or dist.get_rank() == 0
        before = empty_caches(device)
        settings["parts"].take()
        begin = time.perf_counter()
        self.open()
        synchronize(device)
        self._setup_s = time.perf_counter() - begin
        settings["setup"][mode] = settings["parts"].take()
        self._inputs: dict[int, dict[str, torch.Tensor]] = {}
        self._reserved: dict[int, int] = {}
        self._difference: dict[int, float] = {}
        self._seconds: dict[int, list[float]] = {}
        for frames in settings["frames"]:
            inputs = make_inputs(self._transformer, frames, settings["size"], device=device)
            self._inputs[frames] = inputs
            self._seconds[frames] = []
            reset_peak(device)
            output = self.step(frames).cpu()
            self._reserved[frames] = read_peak(device).reserved - before.reserved
            expected = settings["expected"].setdefault(frames, output)
            self._difference[frames] = compare(output, expected)

    def open(self) -> None:
        """Go from the weights' file to a model that computes."""
        name, _, context = self.mode.partition("+")
        self._transformer = make_transformer(self._settings["model"], self._settings["folder"])
        pipeline = Pipeline(self._transformer)
        if context:
            size = dist.get_world_size()
            ContextParallel(size).enable(pipeline, size, self._device)
        self._held, self.close = MODES[name](pipeline, self._device)

    @torch.no_grad()
    def step(self, frames: int) -> torch.Tensor:
        """One call of the denoiser."""
        output: torch.Tensor = self._transformer(**self._inputs[frames], return_dict=False)[0]
        return output

    def time(self) -> None:
        """One more round."""
        for frames, seconds in self._seconds.items():
            dist.barrier()
            if self._computes:
                seconds.append(time_steps(partial(self.step, frames), self._device))
            else:
                seconds.append(0.0)

    def rows(self) -> list[Row]:
        """One for each number of frames; all ranks get the same."""
        rows = []
        for frames, seconds in self._seconds.items():
            mine = seconds, self._reserved[frames], *self._held, self._setup_s
            every: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(every, (*mine, self._difference[frames]))
            times, reserved, own, mapped, setup, differences = zip(*every, strict=True)
            rounds = [1e3 * max(of_ranks) for of_ranks in zip(*times, strict=True)]
            host_gb = (sum(own) + max(mapped)) / 1e9
            step_ms = statistics.median(rounds), min(rounds), max(rounds)
            figures = *step_ms, max(reserved) / 1e9, host_gb, max(setup), max(differences)
            rows.append(dict(zip(COLUMNS, (self.mode, frames, *figures), strict=True)))
        return rows


def compare(output: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value; 0 only where every bit is the same."""
    if torch.equal(output, expected):
        return 0.0
    output, expected = output.double(), expected.double()
    return float((output - expected).abs().max() / expected.abs().max())


class Together:
    """What all ranks have to find alike; each method is a collective call.

    Args:
        deadline: the first rank's counts.
        device: of this rank.
    """

    def __init__(self, deadline: Deadline, device: torch.device) -> None:
        self._deadline, self.device = deadline, device

    def allow(self, seconds: float) -> bool:
        """Whether so many seconds are left on the first rank."""
        goes_on = torch.tensor(int(self._deadline.allows(seconds)), device=self.device)
        dist.broadcast(goes_on, 0)
        return bool(goes_on)

    def have_room(self, num_bytes: int) -> bool:
        """Whether so much device memory is left on every rank."""
        if self.device.type != "cuda":
            return True
        free = torch.tensor(torch.cuda.mem_get_info(self.device)[0], device=self.device)
        dist.all_reduce(free, dist.ReduceOp.MIN)
        return int(free) >= num_bytes


def set_up(waiting: list[str], together: Together, settings: dict[str, Any]) -> list[Contender]:
    """Take modes off a list as long as a resident model and its work still fit beside them."""
    contenders: list[Contender] = []
    room = settings["table"].facts["weight_bytes"] + ROOM_TO_WORK
    while waiting and (not contenders or together.have_room(room)):
        begin = time.monotonic()
        contender = Contender(waiting.pop(0), together.device, settings)
        contenders.append(contender)
        if contender.mode.startswith("streamed"):
            contender.close()
        empty_caches(together.device)
        if not together.allow(time.monotonic() - begin):
            waiting.clear()
    for contender in contenders:
        if contender.mode.startswith("streamed"):
            contender.open()
    return contenders


def run_rank(rank: int, port: int, settings: dict[str, Any]) -> None:
    """What each process does; the first writes after every round."""
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
    settings["expected"] = {}
    table = settings["table"]
    table.facts["connect_s"] = connect(device)
    table.facts["link_gb_s"] = measure_links(device)
    table.facts["setup"] = settings["setup"]
    weights = weight_bytes(make_transformer(settings["model"], settings["folder"]))
    table.facts |= {"weight_bytes": weights, **describe_machine(device)}
    together = Together(settings["deadline"], device)
    waiting, done = list(settings["modes"]), list[Row]()
    while waiting and together.allow(0.0):
        contenders = set_up(waiting, together, settings)
        for _ in range(settings["rounds"]):
            begin = time.monotonic()
            for contender in contenders:
                contender.time()
                empty_caches(device)
            rows = [row for contender in contenders for row in contender.rows()]
            if rank == 0:
                table.parts.clear()
                table.add("rows", *done, *rows)
            if not together.allow(time.monotonic() - begin):
                break
        done += rows
        while contenders:
            contenders.pop().close()
        empty_caches(device)
    dist.destroy_process_group()


@click.command()
@click.option("--processes", default=2, show_default=True)
@harness.model()
@harness.frames()
@harness.size()
@click.option("--modes", default="all", show_default=True, help="`resident,fsdp+context`, ...")
@click.option("--rounds", default=3, show_default=True)
@harness.limit(540.0)
@harness.name()
@harness.folder
@harness.output
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
    harness.check_models(model)
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
        "modes": chosen,
        "processes": processes,
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run_rank, (port, settings), nprocs=processes)


if __name__ == "__main__":
    main()
