"""A picture of a streamed step: what the copy stream does while blocks compute.

    python -m benchmarks.trace --model wan-1.3b --frames 17 --output docs/streaming-trace.png

Two steps are recorded by ``torch.profiler``; ``--trace FILE`` draws one that was recorded before.
"""

import gzip
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from benchmarks import harness
from benchmarks.harness import Contender, find_device
from benchmarks.models import make_inputs
from benchmarks.report import check_drawing

JOIN_US = 20.0  # kernels closer than this are drawn as one bar


class Span(NamedTuple):
    """Something that the device did, in microseconds."""

    start: float
    end: float


class Timeline(NamedTuple):
    """What the device did: copies from the host, and kernels."""

    copies: list[Span]
    kernels: list[Span]

    @property
    def start(self) -> float:
        """When the first of all began."""
        return min(span.start for span in (*self.copies, *self.kernels))

    @property
    def hidden_share(self) -> float:
        """The share of the copies' time during which a kernel ran."""
        copied = sum(span.end - span.start for span in self.copies)
        busy = join(self.kernels, gap_us=0)
        return sum(_overlap(copy, busy) for copy in self.copies) / copied if copied else 0.0


def record(model_name: str, frames: int, size: tuple[int, int], folder: Path, path: Path) -> None:
    """Record two streamed steps, behind two that are not, as a chrome trace."""
    device = find_device()
    contender = Contender("streamed-mapped", model_name, device, folder, size)
    inputs = make_inputs(contender.model, frames, size, device=device)
    for _ in range(2):
        contender.step(inputs)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(2):
            contender.step(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    profile.export_chrome_trace(str(path))
    contender.close()


def read_timeline(path: Path) -> Timeline:
    """Copies to the device of more than a megabyte, and kernels, of a chrome trace."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    copies, kernels = [], []
    for event in json.loads(raw)["traceEvents"]:
        category = event.get("cat")
        if category == "kernel":
            kernels.append(_span(event))
        elif category == "gpu_memcpy" and "HtoD" in event["name"] and _size(event) > 1 << 20:
            copies.append(_span(event))
    return Timeline(sorted(copies), sorted(kernels))


def join(spans: Iterable[Span], *, gap_us: float) -> list[Span]:
    """Spans in order, those no further apart than the gap made one."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.start <= joined[-1].end + gap_us:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def draw(timeline: Timeline, title: str, path: Path) -> None:
    """Two rows against time: copies, their shades taking turns, above what computes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(12, 2.6))
    for number in range(2):
        bars = timeline.copies[number::2]
        axis.broken_barh(_bars(bars, timeline), (1.1, 0.8), color=("#2b6cb0", "#90cdf4")[number])
    computing = join(timeline.kernels, gap_us=JOIN_US)
    axis.broken_barh(_bars(computing, timeline), (0.1, 0.8), color="#dd6b20")
    axis.set_yticks([0.5, 1.5], ["compute stream", "copy stream"])
    axis.set_xlabel("ms")
    axis.set_title(f"{title}: {timeline.hidden_share:.0%} of the copying lies under computing")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(spans: Sequence[Span], timeline: Timeline) -> list[tuple[float, float]]:
    return [((s.start - timeline.start) / 1e3, (s.end - s.start) / 1e3) for s in spans]


def _size(event: dict[str, Any]) -> int:
    return int(event.get("args", {}).get("bytes", 1 << 30))


def _span(event: dict[str, Any]) -> Span:
    return Span(float(event["ts"]), float(event["ts"]) + float(event["dur"]))


def _overlap(span: Span, others: Iterable[Span]) -> float:
    return sum(max(0.0, min(span.end, o.end) - max(span.start, o.start)) for o in others)


@click.command()
@harness.model()
@click.option("--frames", default=17, show_default=True)
@harness.size()
@harness.folder
@click.option("--trace", type=click.Path(path_type=Path), help="Draw this one; record none.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("streaming-trace.png"))
def main(
    model: str, frames: int, size: tuple[int, int], folder: Path, trace: Path | None, output: Path
) -> None:
    """Record two streamed steps and draw them."""
    check_drawing()
    with tempfile.TemporaryDirectory() as kept:
        if trace is None:
            harness.check_models(model)
            trace = Path(kept) / "trace.json"
            record(model, frames, size, folder, trace)
        timeline = read_timeline(trace)
    if not timeline.copies or not timeline.kernels:
        raise click.ClickException("the trace holds no copies or no kernels: it needs a GPU")
    title = f"Wan {model.removeprefix('wan-').upper()}, {frames} frames, two streamed steps"
    draw(timeline, title, output)
    click.echo(f"{output}: {timeline.hidden_share:.1%} of the copying lies under computing")


if __name__ == "__main__":
    main()
