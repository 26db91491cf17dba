"""Seconds until all processes have ended when one is killed in the midst of a denoising step.

    python -m benchmarks.killed_rank --processes 2 --model wan-14b

A row for each rank that is killed: it gets SIGKILL as its third step begins, with copies, parts and
collectives of the others in flight. Each is a run of its own from a plain script.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import psutil
import torch

from benchmarks import harness
from benchmarks.checkpoints import PROMPT, write_pipeline
from benchmarks.harness import describe_machine, find_device
from benchmarks.report import Row, RowTable
from fastvideo_lightning import VideoGenerator

KILLED_AT_STEP = 2
PATIENCE_S = 60.0
"""How long the survivors may take before they are ended from outside; far past what is allowed."""


class Killer:
    """Ends its own process as a step begins.

    Args:
        note: a file that gets the time at which it did.
    """

    def __init__(self, note: Path) -> None:
        self.note = note

    def on_denoise_step_start(self, step: int) -> None:
        """Be killed, as by the system where memory runs out."""
        if step == KILLED_AT_STEP:
            if torch.cuda.is_available():
                time.sleep(0.05)  # what this step started before is on its way
            self.note.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def make_videos(settings: dict[str, Any], rank: int, into: Path) -> None:
    """What each process of a run does: one video for each of them."""
    is_killed = os.environ.get("LOCAL_RANK", "0") == str(rank)
    with VideoGenerator.from_pretrained(
        settings["checkpoint"],
        num_gpus=settings["processes"],
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        callbacks=[Killer(into / f"killed-{rank}")] if is_killed else [],
        progress=False,
    ) as generator:
        prompts = [PROMPT] * settings["processes"]
        folder = into / f"videos-{rank}"
        list(generator.generate_videos(prompts, output_path=folder, **settings["sampling"]))


def measure(rank: int, into: Path) -> Row:
    """Kill a rank and time the end of the others.

    Raises:
        RuntimeError: the run ended before a process was killed.
    """
    note = into / f"killed-{rank}"
    command = [sys.executable, "-m", "benchmarks.killed_rank", "--run", str(rank), str(into)]
    with (into / f"said-{rank}").open("w+") as said:
        process = subprocess.Popen(command, stderr=said, start_new_session=True)
        code: int | None = None
        try:
            while not note.exists() and process.poll() is None:
                time.sleep(0.05)
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(PATIENCE_S)
            while (left := members(process.pid)) and not is_past(note, PATIENCE_S):
                time.sleep(0.05)
            ended_at = time.time()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        lines = said.read().splitlines()
    if not note.exists():
        raise RuntimeError("no process was killed, for the run ended before: " + "\n".join(lines))
    seconds = ended_at - float(note.read_text())
    last = lines[-1] if lines else ""
    return {"rank": rank, "seconds": seconds, "code": code, "left": len(left), "last_line": last}


def members(group: int) -> list[psutil.Process]:
    """The processes of a session that are at work, the dead that nobody has asked for left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_past(note: Path, seconds: float) -> bool:
    """Whether so many seconds went by since the kill."""
    return not note.exists() or time.time() > float(note.read_text()) + seconds


@click.command()
@click.option("--processes", default=2, show_default=True)
@harness.model("wan-14b")
@click.option("--frames", default=17, show_default=True)
@harness.size()
@harness.folder
@harness.output
@click.option("--run", type=(int, click.Path(path_type=Path)), hidden=True)
def main(
    processes: int,
    model: str,
    frames: int,
    size: tuple[int, int],
    folder: Path,
    output: Path,
    run: tuple[int, Path] | None,
) -> None:
    """Measure and write JSON and a Markdown table."""
    if run is not None:
        rank, into = run
        make_videos(json.loads((into / "settings.json").read_text()), rank, into)
        return
    harness.check_models(model)
    height, width = size
    sampling = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": 10}
    settings = {"checkpoint": str(write_pipeline(model, folder)), "sampling": sampling}
    settings["processes"] = processes
    facts = {"model": model, **settings, **describe_machine(find_device())}
    table = RowTable(output / f"killed-{model}.json", f"A killed rank, {model}", facts)
    with tempfile.TemporaryDirectory() as into:
        (Path(into) / "settings.json").write_text(json.dumps(settings))
        for rank in range(processes):
            table.add("rows", measure(rank, Path(into)))


if __name__ == "__main__":
    main()
