"""A quantized denoiser beside the plain one: step time, bytes on the link, and what it changes.

    python -m benchmarks.quantized --model wan-1.3b --frames 1,17 --out OUT

Steps are those of a Wan transformer with random weights, resident and streamed, in bf16 and in each
quantized kind; every streamed output is compared with the resident one of its kind. What the
kinds change of a picture is measured on videos of `tiny-shapes`, which is a trained model.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from benchmarks.checkpoints import write_transformer
from benchmarks.machine import (
    Deadline,
    describe_machine,
    empty_caches,
    find_device,
    measure_link_rate,
    time_steps,
)
from benchmarks.row_table import Row, RowTable
from benchmarks.shapes import CONFIGS, make_inputs
from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.components import RunDtypes, build_component
from fastvideo_lightning.quantization import QUANTIZATIONS, make_quantization

RESULTS = Path(__file__).parent / "results"
KINDS = ("bf16", *QUANTIZATIONS)
PLACEMENTS = {"resident": Resident, "streamed": LayerwiseOffload}
PROMPTS = ("a red circle moves right", "a blue square moves up", "a green triangle moves left")


def load(folder: Path, kind: str, device: torch.device) -> nn.Module:
    """The transformer in a folder as `from_pretrained(dtype=kind)` loads it."""
    component = build_component(
        WanTransformer3DModel,
        folder,
        dtypes=RunDtypes(torch.bfloat16, torch.bfloat16),
        quantization=make_quantization(kind),
        device_type=device.type,
        variant=None,
    )
    component.module.weight_sources = component.sources  # type: ignore[assignment]
    return component.module


@contextmanager
def placed(model: nn.Module, placement: str, device: torch.device) -> Iterator[Any]:
    """Place a model for the time of the context; yields its engine, or None."""
    callback = PLACEMENTS[placement]("")
    callback.attach(model, device)
    try:
        yield callback.attachments[0].engine
    finally:
        callback.detach()
        empty_caches(device)


@torch.no_grad()
def measure(
    model: nn.Module,
    kind: str,
    frame_counts: list[int],
    size: tuple[int, int],
    *,
    link_bytes_per_s: float,
    device: torch.device,
) -> list[Row]:
    """Rows of both placements of a kind's model, the outputs compared with the resident ones."""
    rows: list[Row] = []
    expected: dict[int, torch.Tensor] = {}
    for placement in PLACEMENTS:
        with placed(model, placement, device) as engine:
            for frames in frame_counts:
                inputs = make_inputs(model, frames, size, device=device)  # type: ignore[arg-type]

                def step(arguments: dict[str, torch.Tensor] = inputs) -> torch.Tensor:
                    return model(**arguments, return_dict=False)[0]  # type: ignore[no-any-return]

                output = step().cpu()
                before = 0 if engine is None else engine.stats.bytes_copied
                seconds = time_steps(step, device, count=4)
                copied = 0 if engine is None else (engine.stats.bytes_copied - before) // 5
                rows.append(
                    {
                        "kind": kind,
                        "placement": placement,
                        "frames": frames,
                        "step_ms": seconds * 1e3,
                        "copied_gb_per_step": copied / 1e9,
                        "link_ms": copied / link_bytes_per_s * 1e3,
                        "slots_gb": 0.0 if engine is None else engine.device_bytes / 1e9,
                        "equal": torch.equal(expected.setdefault(frames, output), output),
                    }
                )
    return rows


def compare_videos(plain: list[np.ndarray], kind: str) -> Row:
    """How far the videos of a kind are from those without it."""
    differences = [a - b for a, b in zip(plain, make_videos(kind), strict=True)]
    squares = [max(float(np.mean(d**2)), 1e-12) for d in differences]
    return {
        "kind": kind,
        "psnr_db": [10 * float(np.log10(255**2 / square)) for square in squares],
        "mean_difference_of_255": float(np.mean([np.abs(d).mean() for d in differences])),
    }


def make_videos(kind: str) -> list[np.ndarray]:
    """The frames of some prompts, as floating-point numbers."""
    with VideoGenerator.from_pretrained("tiny-shapes", dtype=kind) as generator:
        return [
            generator.generate_video(prompt, save_video=False, seed=7).frames.astype(np.float64)
            for prompt in PROMPTS
        ]


@click.command()
@click.option("--model", type=click.Choice(sorted(CONFIGS)), default="wan-1.3b", show_default=True)
@click.option("--frames", default="1,17", show_default=True)
@click.option("--size", default="480x832", show_default=True, help="Height and width.")
@click.option("--seconds", default=75.0, show_default=True, help="After which to begin no row.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()) / "random-wan",
    help="Where the weights are kept.",
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(model: str, frames: str, size: str, seconds: float, weights: Path, out: Path) -> None:
    """Measure kind after kind and write JSON and a Markdown page after each."""
    deadline, device = Deadline(seconds), find_device()
    height, width = map(int, size.split("x"))
    folder = weights / f"{model}-transformer"
    write_transformer(model, weights, folder)
    link = measure_link_rate(device)
    facts = {"model": model, "size": size, **describe_machine(device), "link_gb_per_s": link / 1e9}
    table = RowTable(out / f"quantized-{model}.json", f"Quantized weights, {model}", facts)
    taken_s = 0.0
    for kind in KINDS:
        started = time.monotonic()
        if not deadline.allows(taken_s):
            click.echo(f"no time is left for the steps of {kind}", err=True)
            continue
        module = load(folder, kind, device)
        counts, shape = [int(count) for count in frames.split(",")], (height, width)
        rows = measure(module, kind, counts, shape, link_bytes_per_s=link, device=device)
        table.add("steps", *rows)
        del module
        taken_s = max(taken_s, time.monotonic() - started)
        click.echo(f"{kind}: {time.monotonic() - started:.0f} s", err=True)
    if deadline.allows(5):
        plain = make_videos("auto")
        for kind in QUANTIZATIONS:
            if deadline.allows(5):
                table.add("videos", compare_videos(plain, kind))


if __name__ == "__main__":
    main()
