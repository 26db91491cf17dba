"""Measure how often tiny-shapes shows what it was asked for, through plain diffusers in fp32.

    python benchmarks/tiny_shapes.py --output benchmarks/results

Writes `tiny_shapes.json` and `tiny_shapes.md`; with `--sheet` also a picture of frames to look at.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests")]
from support.shape_reader import Reading, read_video  # noqa: E402
from tiny_shapes.captions import canonical_caption, paraphrase  # noqa: E402
from tiny_shapes.scenes import HELD_OUT_SCENES, TRAINED_SCENES, Scene  # noqa: E402

FIRST_SEED = 1024
OTHER_SIZES = (
    *((17, 48, 48), (17, 96, 96), (17, 48, 96), (17, 96, 48), (9, 64, 64), (33, 64, 64)),
    *((9, 48, 48), (33, 48, 48), (9, 96, 96), (33, 96, 96), (33, 96, 48), (9, 48, 96)),
    *((13, 64, 80), (25, 80, 64), (29, 80, 96), (21, 48, 64)),
)


class Trial(NamedTuple):
    """One video to make: the scene, the words for it and the seed."""

    scene: Scene
    prompt: str
    seed: int


class Case(NamedTuple):
    """One row of the table: trials that share their settings."""

    name: str
    trials: list[Trial]
    settings: dict[str, Any]


def main() -> None:
    options = parse_options()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pipeline = diffusers.WanPipeline.from_pretrained(options.model).to(device)
    pipeline.set_progress_bar_config(disable=True)
    defaults = json.loads((options.model / "sampling.json").read_text())
    settings = {key: value for key, value in defaults.items() if key not in ("fps", "trained")}
    rows, started = [], time.monotonic()
    for case in make_cases(settings, options):
        row, videos = measure(pipeline, case, options.batch)
        rows.append(row)
        print(f"{row['case']:45} {row['all_four']:5d} of {row['videos']}", flush=True)
        if options.sheet and (case.settings == settings or "frames, " in case.name):
            write_sheet(options.output / f"{slug(case.name)}.png", videos)
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "settings": settings,
        "seconds": round(time.monotonic() - started, 1),
        "training": read_json(options.training),
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "tiny_shapes.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "tiny_shapes.md").write_text(as_markdown(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    assets = ROOT / "fastvideo_lightning" / "assets" / "tiny-shapes"
    parser.add_argument("--model", type=Path, default=assets)
    parser.add_argument("--training", type=Path, help="training.json, to be kept in the table")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--device")
    parser.add_argument("--batch", type=int, default=172, help="videos made at a time")
    parser.add_argument("--seeds", type=int, default=8, help="per held-out scene at the defaults")
    parser.add_argument("--scenes", type=int, help="only the first so many held-out scenes")
    parser.add_argument("--sheet", action="store_true", help="write pictures of frames")
    return parser.parse_args()


def make_cases(settings: dict[str, Any], options: argparse.Namespace) -> Iterator[Case]:
    """The rows of the table; each video of a run has a seed of its own."""
    held_out = HELD_OUT_SCENES[: options.scenes]
    seeds = iter(range(FIRST_SEED, 10**6))

    def trials(scenes: tuple[Scene, ...], repeats: int) -> list[Trial]:
        return [
            Trial(scene, canonical_caption(scene), next(seeds))
            for _ in range(repeats)
            for scene in scenes
        ]

    rng = random.Random(1)
    reworded = [
        Trial(scene, paraphrase(scene, rng), next(seeds)) for _ in range(4) for scene in held_out
    ]
    yield Case("held-out scenes, defaults", trials(held_out, options.seeds), settings)
    yield Case("held-out scenes, paraphrased", reworded, settings)
    yield Case("trained scenes, defaults", trials(TRAINED_SCENES[: options.scenes], 1), settings)
    for num_frames, height, width in OTHER_SIZES:
        name = f"held-out scenes, {num_frames} frames, {width}x{height}"
        size = {"num_frames": num_frames, "height": height, "width": width}
        yield Case(name, trials(held_out, 2), settings | size)
    for steps in (4, 6, 12, 20):
        changed = settings | {"num_inference_steps": steps}
        yield Case(f"held-out scenes, {steps} steps", trials(held_out, 2), changed)
    for guidance in (1.0, 3.0, 5.0):
        changed = settings | {"guidance_scale": guidance}
        yield Case(f"held-out scenes, guidance {guidance:g}", trials(held_out, 2), changed)


def measure(
    pipeline: diffusers.WanPipeline, case: Case, batch: int
) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    """Make a case's videos and read them: the row, and the videos in order."""
    videos: list[npt.NDArray[np.uint8]] = []
    for start in range(0, len(case.trials), batch):
        part = case.trials[start : start + batch]
        made = pipeline(
            prompt=[trial.prompt for trial in part],
            generator=[torch.Generator("cpu").manual_seed(trial.seed) for trial in part],
            output_type="np",
            **case.settings,
        ).frames
        videos += list((made * 255).round().astype(np.uint8))
    with ThreadPoolExecutor() as readers:
        readings = list(readers.map(read_video, videos))
    rights = [
        [read == asked for read, asked in zip(reading, trial.scene, strict=True)]
        for reading, trial in zip(readings, case.trials, strict=True)
    ]
    row: dict[str, Any] = {"case": case.name, "videos": len(videos)}
    row["all_four"] = sum(map(all, rights))
    row |= {name: sum(right[i] for right in rights) for i, name in enumerate(Reading._fields)}
    row["misread"] = [
        {"prompt": trial.prompt, "seed": trial.seed, "read": reading}
        for trial, reading, right in zip(case.trials, readings, rights, strict=True)
        if not all(right)
    ]
    return row, videos


def write_sheet(path: Path, videos: list[npt.NDArray[np.uint8]], rows: int = 12) -> None:
    """Five frames each of the first videos, one video per row, two columns of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    strips = []
    for video in videos[: 2 * rows]:
        picked = video[np.linspace(0, len(video) - 1, 5).round().astype(int)]
        framed = np.pad(picked, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=90)
        strips.append(np.concatenate(list(framed), axis=1))
    columns = [np.concatenate(part) for part in (strips[::2], strips[1::2]) if part]
    shortest = min(map(len, columns))
    Image.fromarray(np.concatenate([c[:shortest] for c in columns], axis=1)).save(path)


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items())
    lines = [
        "# tiny-shapes: how often the video shows what the prompt says",
        "",
        f"Plain `WanPipeline` in fp32 on {report['device']} ({versions}), read off the pixels by",
        "`tests/support/shape_reader.py`. Unless a row says otherwise:",
        f"{settings}. Sizes are width x height.",
        f"Every video has its own seed, {FIRST_SEED} and up. Made by `benchmarks/tiny_shapes.py`.",
        "",
        "| case | videos | all four right | colour | shape | direction | background |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        share = row["all_four"] / row["videos"]
        each = " | ".join(str(row[name]) for name in Reading._fields)
        lines.append(
            f"| {row['case']} | {row['videos']} | {row['all_four']} ({share:.1%}) | {each} |"
        )
    others = [row for row in report["rows"] if " frames, " in row["case"]]
    right, videos = (sum(row[key] for row in others) for key in ("all_four", "videos"))
    lines += ["", f"The {len(others)} other sizes and lengths together: {right} of {videos}"]
    lines[-1] += f" ({right / videos:.1%})."
    if report["training"]:
        lines += ["", "Training:", "", "```json", json.dumps(report["training"], indent=1), "```"]
    return "\n".join(lines) + "\n"


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).replace("--", "-")


def read_json(path: Path | None) -> Any:
    return json.loads(path.read_text()) if path else None


if __name__ == "__main__":
    main()
