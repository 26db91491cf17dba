"""The stages around the denoiser's steps, and whole videos, on checkpoints of random weights.

    python -m benchmarks.stages --model wan-14b --small-model wan-1.3b --parts all

``encode``: the text encoder streamed and resident. ``moments``: the step in which a two-expert
model hands over, and how long the decode waits for the VAE. ``caps``: whole videos of a checkpoint
on disk under a cap of device memory, equal to those without one. ``flat``: many videos in a row.
"""

import json
import time
from pathlib import Path
from typing import Any

import click

from benchmarks import options
from benchmarks.checkpoints import BOUNDARY_RATIO, write_pipeline
from benchmarks.encoding import measure_encoding
from benchmarks.harness import Deadline, describe_machine, find_device, measure_link_rate
from benchmarks.models import CONFIGS
from benchmarks.moments import measure_moments
from benchmarks.stage_report import make_page
from benchmarks.whole_videos import measure_caps, measure_flatness

PARTS = ("encode", "moments", "caps", "flat")
CAPS_GIB = {17: 8.0, 81: 12.0}


class Report:
    """What was measured so far, written whenever something is added."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self._path = path
        self.facts = facts

    def add(self, name: str, result: Any) -> None:
        """Keep a result and write the files anew."""
        self.facts[name] = result
        self._path.write_text(json.dumps(self.facts, indent=1) + "\n")
        self._path.with_suffix(".md").write_text(make_page(self.facts))


@click.command()
@options.model("wan-14b")
@click.option("--small-model", type=click.Choice(sorted(CONFIGS)), default="wan-1.3b")
@click.option("--parts", default="all", show_default=True, help=f"Of {', '.join(PARTS)}.")
@options.size()
@options.size("256x256", flag="--small-size", of=" of the many videos")
@click.option("--videos", default=50, show_default=True, help="How many of them.")
@options.frames(",".join(map(str, CAPS_GIB)))
@options.limit(3600.0)
@options.name("stages")
@options.folder
@options.output
def main(
    model: str,
    small_model: str,
    parts: str,
    size: tuple[int, int],
    small_size: tuple[int, int],
    videos: int,
    frames: tuple[int, ...],
    limit_s: float,
    name: str,
    folder: Path,
    output: Path,
) -> None:
    """Measure part after part and write JSON and a Markdown page after each."""
    deadline, device = Deadline(limit_s), find_device()
    chosen = list(PARTS) if parts == "all" else parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise click.BadParameter(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    needed = {small_model if part == "flat" else model for part in chosen}
    options.check_models(*needed, instead="--model wan-tiny --small-model wan-tiny")
    output.mkdir(parents=True, exist_ok=True)
    report = Report(output / f"{name}.json", {"model": model, **describe_machine(device)})
    for part in chosen:
        if not deadline.allows(0):
            click.echo(f"no time is left for {part}", err=True)
            break
        started = time.monotonic()
        if part == "encode":
            link = {"link_bytes_per_s": measure_link_rate(device)}
            report.add(part, link | measure_encoding(_checkpoint(model, folder), device))
        elif part == "moments":
            experts = _checkpoint(model, folder, boundary_ratio=BOUNDARY_RATIO)
            report.add(part, measure_moments(experts, num_frames=frames[0], **_sides(size)))
        elif part == "caps":
            caps = {count: CAPS_GIB.get(count, max(CAPS_GIB.values())) for count in frames}
            rows: list[dict[str, Any]] = []
            for row in measure_caps(_checkpoint(model, folder), caps, **_sides(size)):
                rows.append(row)
                report.add(part, rows)
        else:
            sampling = {"num_frames": 5, "num_inference_steps": 2, **_sides(small_size)}
            small = _checkpoint(small_model, folder)
            report.add(part, measure_flatness(small, num_videos=videos, **sampling))
        click.echo(f"{part}: {time.monotonic() - started:.0f} s", err=True)
    click.echo(make_page(report.facts))


def _checkpoint(model: str, folder: Path, *, boundary_ratio: float | None = None) -> Path:
    started = time.monotonic()
    path = write_pipeline(model, folder, boundary_ratio=boundary_ratio)
    click.echo(f"{path} is there after {time.monotonic() - started:.0f} s", err=True)
    return path


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return dict(zip(("height", "width"), size, strict=True))


if __name__ == "__main__":
    main()
