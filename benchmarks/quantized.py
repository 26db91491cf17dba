"""A quantized denoiser beside the plain one: step time, bytes on the link, and what it changes.

    python -m benchmarks.quantized --model wan-1.3b --frames 1,17

Steps are those of a Wan transformer with random weights: resident, streamed, streamed within a CUDA
graph and streamed with compiled blocks, in bf16 and in each quantized kind. Each output is compared
with the resident one of its kind. What the kinds change of a picture is measured on videos of
`tiny-shapes`, which is a trained model.
"""

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

from benchmarks import harness
from benchmarks.checkpoints import write_transformer
from benchmarks.harness import (
    Deadline,
    Names,
    describe_machine,
    empty_caches,
    find_device,
    measure_link_rate,
    synchronize,
    time_steps,
)
from benchmarks.models import make_inputs
from benchmarks.report import Row, RowTable
from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.checkpoint.components import RunDtypes, build_component
from fastvideo_lightning.checkpoint.quantization import QUANTIZATIONS, make_quantization
from fastvideo_lightning.modules.acceleration import compile_blocks

KINDS = ("bf16", *QUANTIZATIONS)
WAYS = {
    "resident": lambda: Resident(""),
    "streamed": lambda: LayerwiseOffload(""),
    "graphed": lambda: LayerwiseOffload("", cuda_graphs=True),
    "compiled": lambda: LayerwiseOffload(""),
}
STEPS = 4
UNTIMED_STEPS = 3  # in the third a call is captured, as weights are where they were at last
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
def placed(model: nn.Module, way: str, device: torch.device) -> Iterator[Any]:
    """Place a model for a batch, the time of the context; yields its engine, or None."""
    callback = WAYS[way]()
    engine = callback.attach(model, device).engine
    callback.on_predict_batch_start()
    try:
        yield engine
    finally:
        callback.on_predict_batch_end()
        callback.detach()
        empty_caches(device)


@torch.no_grad()
def measure(
    model: nn.Module,
    way: str,
    frame_counts: tuple[int, ...],
    size: tuple[int, int],
    expected: dict[int, torch.Tensor],
    *,
    device: torch.device,
) -> Iterator[Row]:
    """Rows of one way to run a model, the outputs compared with those of the first way.

    `launch_ms` is what the host takes to launch a step: where it is the step's time, the host sets
    the pace. `pinned` is the share of the host's bytes that the driver knows.
    """
    with placed(model, way, device) as engine:
        if way == "compiled":
            torch._dynamo.config.recompile_limit = 64  # for each kind and number of frames
            compile_blocks(model, "")
        for frames in frame_counts:
            inputs = make_inputs(model, frames, size, device=device)  # type: ignore[arg-type]
            output = [_step(model, inputs) for _ in range(UNTIMED_STEPS)][-1].cpu()
            before = 0 if engine is None else engine.stats.bytes_copied
            step_s, launch_s = time_both(model, inputs, device)
            calls = STEPS + 1 + STEPS
            copied = 0 if engine is None else (engine.stats.bytes_copied - before) // calls
            yield {
                "way": way,
                "frames": frames,
                "step_ms": step_s * 1e3,
                "launch_ms": launch_s * 1e3,
                "copied_gb_per_step": copied / 1e9,
                "slots_gb": 0.0 if engine is None else engine.device_bytes / 1e9,
                "pinned": _pinned_share(engine),
                "equal": torch.equal(expected.setdefault(frames, output), output),
            }


def time_both(
    model: nn.Module, inputs: dict[str, torch.Tensor], device: torch.device
) -> tuple[float, float]:
    """Seconds of a step, and seconds that the host takes to launch it."""
    step_s = time_steps(lambda: _step(model, inputs), device, count=STEPS)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(STEPS):
        _step(model, inputs)
    launch_s = (time.perf_counter() - started) / STEPS
    synchronize(device)
    return step_s, launch_s


def _step(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]  # type: ignore[no-any-return]


def _pinned_share(engine: Any) -> float | None:
    return None if engine is None else engine.store.pinned_bytes / engine.store.size_bytes


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


def choose_ways(ways: tuple[str, ...], device: torch.device) -> tuple[str, ...]:
    """The ways that the device can take, compiling last: blocks stay compiled."""
    known = [way for way in WAYS if device.type == "cuda" or way != "graphed"]
    return tuple(way for way in known if way in ways)


@click.command()
@harness.model()
@harness.frames("1,17")
@harness.size()
@harness.limit(75.0)
@harness.folder
@harness.output
@harness.name()
@click.option("--kinds", type=Names(KINDS), default=",".join(KINDS), help="Of weights.")
@click.option("--ways", type=Names(tuple(WAYS)), default=",".join(WAYS), help="To run them.")
@click.option("--videos/--no-videos", default=True, help="Measure what the kinds change.")
def main(
    model: str,
    frames: tuple[int, ...],
    size: tuple[int, int],
    limit_s: float,
    folder: Path,
    output: Path,
    name: str | None,
    kinds: tuple[str, ...],
    ways: tuple[str, ...],
    videos: bool,
) -> None:
    """Measure kind after kind and write JSON and a Markdown page after each row."""
    harness.check_models(model)
    deadline, device = Deadline(limit_s), find_device()
    facts = {"model": model, "size": "x".join(map(str, size)), **describe_machine(device)}
    facts["link_gb_per_s"] = measure_link_rate(device) / 1e9
    path = output / f"{name or f'quantized-{model}'}.json"
    table = RowTable(path, f"Quantized weights, {model}", facts)
    if videos:
        plain = make_videos("auto")
        for kind in [kind for kind in kinds if kind in QUANTIZATIONS]:
            table.add("videos", compare_videos(plain, kind))
    target = folder / f"{model}-transformer"
    write_transformer(model, folder, target)
    for kind in kinds:
        if not deadline.allows(0):
            click.echo(f"no time is left for {kind}", err=True)
            break
        started = time.monotonic()
        module = load(target, kind, device)
        click.echo(f"{kind}: loaded in {time.monotonic() - started:.0f} s", err=True)
        expected: dict[int, torch.Tensor] = {}
        for way in choose_ways(ways, device):
            if not deadline.allows(0):
                break
            for row in measure(module, way, frames, size, expected, device=device):
                table.add("steps", {"kind": kind, **row})
            click.echo(f"{kind}: {way} after {time.monotonic() - started:.0f} s", err=True)
        del module


if __name__ == "__main__":
    main()
