"""Wall time of many prompts on one GPU and on several, which share them.

    python -m benchmarks.prompts --processes 1,2 --model wan-1.3b

Each mode and number of processes is a run of its own, of the same generator over the same prompts,
the seconds from the first video's beginning to the last one's end behind one video that is not
counted. `streamed` is the default of the package, where processes bring parts of blocks for each
other if that is faster; `streamed-local` lets each bring everything by itself; `resident` streams
nothing. The frames must be the same whatever the mode and number. `video_s` is the median of the
seconds from a prompt to its frames. What is measured is written after each run.
"""

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import options
from benchmarks.checkpoints import PROMPT, write_pipeline
from benchmarks.machine import describe_machine, find_device
from benchmarks.row_table import Row, RowTable
from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator

MODES: dict[str, dict[str, Any]] = {
    "streamed": {},
    "streamed-local": {"shard_transport": "local"},
    "resident": {"dit_layerwise_offload": False},
}
ALONE = {"streamed-local": "streamed"}
"""Modes that are another one where a process is alone."""


def make_videos(settings: dict[str, Any], mode: str, num_gpus: int, into: Path) -> None:
    """What each process of a run does; each leaves its seconds and its videos' digests."""
    sampling = {"guidance_scale": 3.0, **settings["sampling"]}
    began = time.perf_counter()
    with VideoGenerator.from_pretrained(
        settings["checkpoint"],
        num_gpus=num_gpus,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        progress=False,
        **settings["flags"],
        **MODES[mode],
    ) as generator:
        setup_s = time.perf_counter() - began
        generator.generate_video(PROMPT, save_video=False, **sampling)
        fabric = generator._fabric
        assert fabric is not None
        prompts = PromptDataset([PROMPT] * settings["count"], **sampling)  # each has its own seed
        fabric.barrier()
        began = time.perf_counter()
        videos = PredictLoop(fabric).run(generator.module, prompts, return_predictions=True)
        seconds = time.perf_counter() - began
        digests = {v.index: hashlib.sha256(v.frames.tobytes()).hexdigest() for v in videos or ()}
        each = [video.generation_time_s for video in videos or ()]
        report = {"seconds": seconds, "setup_s": setup_s, "digests": digests, "each_s": each}
        (into / f"{mode}-{num_gpus}-{fabric.global_rank}.json").write_text(json.dumps(report))


def summarize(into: Path, runs: list[tuple[str, int]], count: int) -> list[Row]:
    """A row for each mode and number of processes, from what they left."""
    rows: list[Row] = []
    expected: dict[str, str] = {}
    for mode, size in runs:
        paths = [into / f"{mode}-{size}-{rank}.json" for rank in range(size)]
        reports = [json.loads(path.read_text()) for path in paths]
        digests = {i: digest for report in reports for i, digest in report["digests"].items()}
        expected = expected or digests
        row = {
            "mode": mode,
            "processes": size,
            "videos": sum(len(report["digests"]) for report in reports),
            "seconds": max(report["seconds"] for report in reports),
            "video_s": statistics.median(s for report in reports for s in report["each_s"]),
            "setup_s": max(report["setup_s"] for report in reports),
            "equal": digests == expected and len(digests) == count,
        }
        rows.append(row)
        beside = next(one for one in rows if one["mode"] == ALONE.get(mode, mode))
        row["ratio"] = row["seconds"] / beside["seconds"]
    return rows


@click.command()
@click.option("--processes", default="1,2", show_default=True)
@options.model()
@click.option("--count", default=8, show_default=True, help="Prompts.")
@click.option("--steps", default=10, show_default=True)
@click.option("--frames", default=17, show_default=True)
@options.size()
@click.option(
    "--modes",
    type=options.Names(tuple(MODES)),
    default=tuple(MODES),
    help=f"Of {', '.join(MODES)}.  [default: all]",
)
@options.folder
@options.output
@click.option("--run", type=(str, int, click.Path(path_type=Path)), hidden=True)
def main(
    processes: str,
    model: str,
    count: int,
    steps: int,
    frames: int,
    size: tuple[int, int],
    modes: tuple[str, ...],
    folder: Path,
    output: Path,
    run: tuple[str, int, Path] | None,
) -> None:
    """Measure and write JSON."""
    if run is not None:
        mode, num_gpus, into = run
        make_videos(json.loads((into / "settings.json").read_text()), mode, num_gpus, into)
        return
    height, width = size
    shape = {"height": height, "width": width, "num_frames": frames}
    settings = {
        "checkpoint": str(write_pipeline(model, folder)),
        "count": count,
        "flags": {"text_encoder_cpu_offload": False},
        "sampling": {**shape, "num_inference_steps": steps},
    }
    runs = [(mode, int(n)) for mode in modes for n in processes.split(",")]
    runs = [(mode, n) for mode, n in runs if n > 1 or mode not in ALONE]
    facts = {"model": model, **settings, **describe_machine(find_device())}
    table = RowTable(output / f"prompts-{model}.json", f"{count} prompts, {model}", facts)
    with tempfile.TemporaryDirectory() as into:
        (Path(into) / "settings.json").write_text(json.dumps(settings))
        for i, (mode, number) in enumerate(runs, 1):
            command = [sys.executable, "-m", "benchmarks.prompts", "--run", mode, str(number), into]
            subprocess.run(command, check=True)
            table.add("rows", summarize(Path(into), runs[:i], count)[-1])


if __name__ == "__main__":
    main()
