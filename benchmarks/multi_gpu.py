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
"""

import socket
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import options
from benchmarks.harness import (
    Deadline,
    describe_machine,
    empty_caches,
    read_peak,
    reset_peak,
    synchronize,
    time_steps,
)
from benchmarks.links import measure_links
from benchmarks.models import make_inputs, make_transformer, weight_bytes
from benchmarks.multi_gpu_modes import ALONE, MODES, Pipeline
from benchmarks.row_table import Row, RowTable
from benchmarks.setup_parts import Parts, connect
from fastvideo_lightning.strategies.context_parallel import ContextParallel

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
    options.check_models(model)
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
