"""Wall time of many prompts on one GPU and on several, which share them.

    python -m benchmarks.prompts --processes 1,2 --model wan-1.3b

Each mode and number of processes is a generator of its own, ready behind one video that is not
counted; then all take turns in every round with the same prompts, so that what changes on the
machine meets all of them. `seconds` is the median of the rounds, from the first video's beginning
to the last one's end. `streamed` is the default of the package, where processes bring parts of
blocks for each other if that is faster; `streamed-local` lets each bring everything by itself;
`resident` streams nothing. The frames must be the same whatever the mode and number. `video_s` is
the median of the seconds from a prompt to its frames.
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

from benchmarks import harness
from benchmarks.checkpoints import PROMPT, write_pipeline
from benchmarks.harness import describe_machine, find_device
from benchmarks.report import Row, RowTable
from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator

MODES: dict[str, dict[str, Any]] = {
    "streamed": {},
    "streamed-local": {"shard_transport": "local"},
    "resident": {"dit_layerwise_offload": False},
}
ALONE = {"streamed-local": "streamed"}
"""Modes that are another one where a process is alone."""

Contender = tuple[str, int]
"""A mode, and a number of processes."""


def make_videos(settings: dict[str, Any], contender: Contender, into: Path) -> None:
    """What each process of a contender does; in each turn it leaves its seconds and digests."""
    mode, num_gpus = contender
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
        (into / f"{mode}-{num_gpus}-ready-{fabric.global_rank}").touch()
        for turn in range(settings["rounds"]):
            wait_for(into / f"{mode}-{num_gpus}-turn-{turn}")
            fabric.barrier()
            began = time.perf_counter()
            videos = list(PredictLoop(fabric).iterate(generator.module, prompts))
            seconds = time.perf_counter() - began
            digests = {v.index: hashlib.sha256(v.frames.tobytes()).hexdigest() for v in videos}
            each = [video.generation_time_s for video in videos]
            report = {"seconds": seconds, "setup_s": setup_s, "digests": digests, "each_s": each}
            path = into / f"{mode}-{num_gpus}-{turn}-{fabric.global_rank}.json"
            path.with_suffix(".part").write_text(json.dumps(report))
            path.with_suffix(".part").rename(path)


def wait_for(path: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until there is such a file; RuntimeError if the process ends without it."""
    while not path.exists():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"A process ended with {process.returncode}; {path.name} is missing")
        time.sleep(0.02)


def summarize(into: Path, contenders: list[Contender], turns: int, count: int) -> list[Row]:
    """A row for each contender, from what its processes have left."""
    rows: list[Row] = []
    expected: dict[str, str] = {}
    for mode, size in contenders:
        rounds = [[read(into, mode, size, turn, k) for k in range(size)] for turn in range(turns)]
        made = [{i: d for one in reports for i, d in one["digests"].items()} for reports in rounds]
        expected = expected or made[0]
        seconds = [max(report["seconds"] for report in reports) for reports in rounds]
        every = [report for reports in rounds for report in reports]
        row = {
            "mode": mode,
            "processes": size,
            "videos": min(sum(len(one["digests"]) for one in reports) for reports in rounds),
            "seconds": statistics.median(seconds),
            "fastest_s": min(seconds),
            "slowest_s": max(seconds),
            "video_s": statistics.median(s for report in every for s in report["each_s"]),
            "setup_s": max(report["setup_s"] for report in every),
            "equal": all(digests == expected and len(digests) == count for digests in made),
        }
        rows.append(row)
    alone = {row["mode"]: row["seconds"] for row in rows if row["processes"] == 1}
    for row in rows:
        beside = alone.get(ALONE.get(row["mode"], row["mode"]))
        row["ratio"] = None if beside is None else row["seconds"] / beside
    return rows


def read(into: Path, mode: str, size: int, turn: int, rank: int) -> dict[str, Any]:
    """What one process left of one turn."""
    report: dict[str, Any] = json.loads((into / f"{mode}-{size}-{turn}-{rank}.json").read_text())
    return report


@click.command()
@click.option("--processes", default="1,2", show_default=True)
@harness.model()
@click.option("--count", default=8, show_default=True, help="Prompts.")
@click.option("--steps", default=10, show_default=True)
@click.option("--frames", default=17, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@harness.size()
@click.option(
    "--modes",
    type=harness.Names(tuple(MODES)),
    default=tuple(MODES),
    help=f"Of {', '.join(MODES)}.  [default: all]",
)
@harness.folder
@harness.output
@click.option("--run", type=(str, int, click.Path(path_type=Path)), hidden=True)
def main(
    processes: str,
    model: str,
    count: int,
    steps: int,
    frames: int,
    rounds: int,
    size: tuple[int, int],
    modes: tuple[str, ...],
    folder: Path,
    output: Path,
    run: tuple[str, int, Path] | None,
) -> None:
    """Measure and write JSON."""
    if run is not None:
        mode, num_gpus, into = run
        make_videos(json.loads((into / "settings.json").read_text()), (mode, num_gpus), into)
        return
    harness.check_models(model)
    height, width = size
    shape = {"height": height, "width": width, "num_frames": frames}
    settings = {
        "checkpoint": str(write_pipeline(model, folder)),
        "count": count,
        "rounds": rounds,
        "flags": {"text_encoder_cpu_offload": False},
        "sampling": {**shape, "num_inference_steps": steps},
    }
    contenders = [(mode, int(n)) for mode in modes for n in processes.split(",")]
    contenders = [(mode, n) for mode, n in contenders if n > 1 or mode not in ALONE]
    facts = {"model": model, **settings, **describe_machine(find_device())}
    table = RowTable(output / f"prompts-{model}.json", f"{count} prompts, {model}", facts)
    with tempfile.TemporaryDirectory() as folder_of_turns:
        into = Path(folder_of_turns)
        (into / "settings.json").write_text(json.dumps(settings))
        started = [start(mode, number, into) for mode, number in contenders]
        try:
            for (mode, number), process in zip(contenders, started, strict=True):
                for rank in range(number):
                    wait_for(into / f"{mode}-{number}-ready-{rank}", process)
            for turn in range(rounds):
                for (mode, number), process in zip(contenders, started, strict=True):
                    (into / f"{mode}-{number}-turn-{turn}").touch()
                    for rank in range(number):
                        wait_for(into / f"{mode}-{number}-{turn}-{rank}.json", process)
                table.parts.clear()
                table.add("rows", *summarize(into, contenders, turn + 1, count))
        except BaseException:
            for process in started:
                process.terminate()
            raise
        finally:
            for process in started:
                process.wait()


def start(mode: str, number: int, into: Path) -> subprocess.Popen[bytes]:
    """Start a contender's first process, which starts the others."""
    command = [sys.executable, "-m", "benchmarks.prompts", "--run", mode, str(number), str(into)]
    return subprocess.Popen(command)


if __name__ == "__main__":
    main()
