"""A quantized denoiser beside the plain one: step time, bytes on the link, and what it changes.

    python -m benchmarks.quantized --model wan-1.3b --out OUT

Steps are those of a Wan transformer with random weights, resident and streamed, in bf16 and in each
quantized kind; every streamed output is compared with the resident one of its kind. What the
kinds change of a picture is measured on videos of `tiny-shapes`, which is a trained model.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from benchmarks.machine import describe_machine, find_device
from benchmarks.shapes import make_inputs, make_transformer
from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.components import RunDtypes, build_component
from fastvideo_lightning.quantization import QUANTIZATIONS, make_quantization

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


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write a transformer's folder in diffusers' layout, with random weights."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    model = make_transformer(name, folder)
    model.save_config(target)
    link = target / "diffusion_pytorch_model.safetensors"
    if not link.exists():
        link.symlink_to((folder / f"{name}.safetensors").resolve())
    return target


@contextmanager
def placed(model: nn.Module, placement: str, device: torch.device) -> Iterator[Any]:
    """Place a model for the time of the context; yields its engine, or None."""
    callback = PLACEMENTS[placement]("")
    callback.attach(model, device)
    try:
        yield callback.attachments[0].engine
    finally:
        callback.detach()
        if device.type == "cuda":
            torch.cuda.empty_cache()


@torch.no_grad()
def measure(
    model: nn.Module,
    kind: str,
    frames: int,
    size: tuple[int, int],
    steps: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One row for each placement of a kind's model, compared with its resident output."""
    rows: list[dict[str, Any]] = []
    outputs: dict[str, torch.Tensor] = {}
    for placement in PLACEMENTS:
        with placed(model, placement, device) as engine:
            inputs = make_inputs(model, frames, size, device=device)
            model(**inputs, return_dict=False)
            before = 0 if engine is None else engine.stats.bytes_copied
            times = [_time_step(model, inputs, outputs, placement, device) for _ in range(steps)]
            copied = 0 if engine is None else engine.stats.bytes_copied - before
            rows.append(
                {
                    "kind": kind,
                    "placement": placement,
                    "frames": frames,
                    "step_ms": statistics.median(times),
                    "streamed_bytes_per_step": copied // steps,
                    "slots_bytes": 0 if engine is None else engine.device_bytes,
                    "equal_to_resident": torch.equal(outputs["resident"], outputs[placement]),
                }
            )
    return rows


def _time_step(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
    placement: str,
    device: torch.device,
) -> float:
    started = time.perf_counter()
    (output,) = model(**inputs, return_dict=False)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed_s = time.perf_counter() - started
    outputs[placement] = output.cpu()
    return elapsed_s * 1e3


def compare_videos() -> list[dict[str, Any]]:
    """How far the videos of each kind are from those without it, over some prompts."""
    videos: dict[str, list[np.ndarray]] = {}
    for kind in ("auto", *QUANTIZATIONS):
        with VideoGenerator.from_pretrained("tiny-shapes", dtype=kind) as generator:
            videos[kind] = [
                generator.generate_video(prompt, save_video=False, seed=7).frames.astype(np.float64)
                for prompt in PROMPTS
            ]
    rows = []
    for kind in QUANTIZATIONS:
        differences = [a - b for a, b in zip(videos["auto"], videos[kind], strict=True)]
        squares = [max(float(np.mean(d**2)), 1e-12) for d in differences]
        rows.append(
            {
                "kind": kind,
                "psnr_db": [10 * float(np.log10(255**2 / square)) for square in squares],
                "mean_difference_of_255": float(np.mean([np.abs(d).mean() for d in differences])),
            }
        )
    return rows


def main() -> None:
    """Measure, print and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="wan-1.3b")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 17])
    parser.add_argument("--size", type=int, nargs=2, default=[480, 832])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--weights", type=Path, default=Path("/tmp/random-weights"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = find_device()
    folder = write_checkpoint(options.model, options.weights)
    facts: dict[str, Any] = {
        **describe_machine(device),
        "model": options.model,
        "size": options.size,
        "steps": [],
        "videos": compare_videos(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"quantized-{options.model}.json"
    for kind in KINDS:
        model = load(folder, kind, device)
        for frames in options.frames:
            rows = measure(model, kind, frames, tuple(options.size), options.steps, device)
            facts["steps"] += rows
            for row in rows:
                print(json.dumps(row), flush=True)
            path.write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts["videos"]))


if __name__ == "__main__":
    main()
