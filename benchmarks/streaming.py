"""Step time and memory of a streamed denoiser, beside the resident one and the alternatives.

    python -m benchmarks.streaming --model wan-14b --frames 1,17,81 --modes resident,streamed

All modes live in one process; a round times each of them, so that a drift of the machine meets all
alike. Reserved memory of a mode is what its own steps add to the process, measured before the
rounds.
"""

import gc
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
import torch

from benchmarks.modes import MODES
from benchmarks.report import write_report
from benchmarks.shapes import (
    CONFIGS,
    RandomWan,
    make_inputs,
    make_transformer,
    weight_bytes,
)
from fastvideo_lightning.offload.host import HostSlab
from fastvideo_lightning.offload.layout import SlabLayout, TensorSpec

RESULTS = Path(__file__).parent / "results"
GIB = 1 << 30


def describe_machine(device: torch.device) -> dict[str, str]:
    """Names and versions that a figure depends on."""
    commit = os.environ.get("COMMIT")  # where the checkout's history is not at hand
    if commit is None:
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "commit": commit,
    }


def measure_link_rate(device: torch.device, size_bytes: int = GIB) -> float:
    """Bytes per second of a copy from pinned host memory, the median of ten."""
    slab = HostSlab(SlabLayout([TensorSpec.contiguous(torch.Size([size_bytes]), torch.uint8)]))
    slab.buffer.fill_(1)
    target = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        slab.pin()
    seconds = [
        time_steps(lambda: target.copy_(slab.buffer, non_blocking=True), device) for _ in range(10)
    ]
    slab.close()
    return size_bytes / statistics.median(seconds)


def time_steps(step: Callable[[], object], device: torch.device, count: int = 2) -> float:
    """Seconds of one of ``count`` steps in a row, behind one that is not counted, as in a video.

    Nothing synchronizes in between: what a step prefetches for the next is paid within.
    """
    step()
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - start) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3 / count


class Contender:
    """A model in one mode, with what was measured of it."""

    def __init__(self, mode: str, model_name: str, device: torch.device, folder: Path) -> None:
        self.mode = mode
        self.device = device
        self.model: RandomWan = make_transformer(model_name, folder)
        self.seconds: dict[int, list[float]] = {}
        self.reserved_bytes: dict[int, int] = {}
        self.allocated_bytes: dict[int, int] = {}
        self.is_equal: dict[int, bool] = {}
        self._before = self._empty()
        begin = time.perf_counter()
        self.streamed_bytes = MODES[mode](self.model, device)
        self.setup_s = time.perf_counter() - begin

    def step(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """One forward of the transformer."""
        with torch.no_grad():
            return self.model(**inputs, return_dict=False)[0]

    def measure_memory(self, frames: int) -> torch.Tensor:
        """Two steps on their own; returns the output of the second."""
        inputs = make_inputs(self.model, frames, device=self.device)
        self._empty()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.step(inputs)
        output = self.step(inputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            before_reserved, before_allocated = self._before
            peak = torch.cuda.max_memory_reserved(self.device)
            self.reserved_bytes[frames] = peak - before_reserved
            peak = torch.cuda.max_memory_allocated(self.device)
            self.allocated_bytes[frames] = peak - before_allocated
        return output

    def _empty(self) -> tuple[int, int]:
        gc.collect()
        if self.device.type != "cuda":
            return 0, 0
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return (
            torch.cuda.memory_reserved(self.device),
            torch.cuda.memory_allocated(self.device),
        )


def run_rounds(contenders: list[Contender], frames: int, rounds: int) -> None:
    """Time each contender once per round; the first round does not count."""
    for number in range(rounds + 1):
        for contender in contenders:
            inputs = make_inputs(contender.model, frames, device=contender.device)
            count = 1 if frames > 40 else 2
            seconds = time_steps(lambda c=contender, i=inputs: c.step(i), contender.device, count)
            if number:
                contender.seconds.setdefault(frames, []).append(seconds)


def summarize(contenders: list[Contender], model: RandomWan, rate: float) -> dict:
    """Everything measured, as it goes into the JSON file."""
    rows = []
    for contender in contenders:
        for frames, seconds in contender.seconds.items():
            rows.append(
                {
                    "mode": contender.mode,
                    "frames": frames,
                    "step_ms": statistics.median(seconds) * 1e3,
                    "min_ms": min(seconds) * 1e3,
                    "max_ms": max(seconds) * 1e3,
                    "reserved_gb": contender.reserved_bytes.get(frames, 0) / 1e9,
                    "allocated_gb": contender.allocated_bytes.get(frames, 0) / 1e9,
                    "streamed_bytes": contender.streamed_bytes,
                    "setup_s": contender.setup_s,
                    "equal_to_resident": contender.is_equal.get(frames),
                }
            )
    return {
        "weight_bytes": weight_bytes(model),
        "link_bytes_per_s": rate,
        "rows": rows,
    }


@click.command()
@click.option("--model", "model_name", type=click.Choice(sorted(CONFIGS)), default="wan-1.3b")
@click.option("--frames", default="1,17,81", show_default=True)
@click.option("--modes", default="streamed,resident", show_default=True, help="Names, or `all`.")
@click.option("--name", default=None, help="Of the result files.")
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()),
    help="Where the checkpoint of random weights is kept; 28.6 GB for wan-14b.",
)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    model_name: str,
    frames: str,
    modes: str,
    name: str | None,
    rounds: int,
    folder: Path,
    output: Path,
) -> None:
    """Measure and write JSON, a Markdown table and a plot."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    counts = [int(count) for count in frames.split(",")]
    rate = measure_link_rate(device, GIB if device.type == "cuda" else 1 << 24)
    names = list(MODES) if modes == "all" else modes.split(",")
    contenders, expected = [], {}
    for mode in sorted(names, key=lambda mode: (mode != "resident", list(MODES).index(mode))):
        contender = Contender(mode, model_name, device, folder)
        click.echo(f"{mode}: set up in {contender.setup_s:.1f} s", err=True)
        for count in counts:
            out = contender.measure_memory(count).cpu()
            expected.setdefault(count, out)
            contender.is_equal[count] = torch.equal(out, expected[count])
        contenders.append(contender)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{name or f'streaming-{model_name}'}.json"
    facts = {"model": model_name, "rounds": rounds, **describe_machine(device)}
    for count in counts:
        run_rounds(contenders, count, rounds)
        click.echo(f"{count} frames: timed", err=True)
        facts |= summarize(contenders, contenders[0].model, rate)
        path.write_text(json.dumps(facts, indent=1) + "\n")  # a run that is cut off leaves these
    click.echo(write_report(path))


if __name__ == "__main__":
    main()
