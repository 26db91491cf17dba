"""`generate --prompts`: many videos, and what the command says about them."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvideo_lightning.cli.console import say

if TYPE_CHECKING:
    from fastvideo_lightning.batch import VideoBatch

STOPPED = 130


def read_prompts(given: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the prompts of a batch with what stands beside them, or None for one video.

    They are those of `--prompts`; with `--seeds`, a prompt alone is a batch too.

    Raises:
        ValueError, OSError: If options do not go together or the file is wrong; names its line.
    """
    if not given.keys() & {"prompts", "seeds"}:
        return None
    if {"prompt", "prompts"} <= given.keys():
        raise ValueError("--prompt and --prompts are both given. Keep one of the two.")
    if given.get("save_video") is False:
        name = "prompts" if "prompts" in given else "seeds"
        raise ValueError(f"{name} always writes its videos. Leave save_video=False out.")
    if given.get("prompts") == "-" and given.get("num_gpus", 1) > 1:
        raise ValueError(
            "prompts from stdin reach one process only, got num_gpus="
            f"{given['num_gpus']}. Write them to a file and pass that."
        )
    from fastvideo_lightning.prompts.dataset import check_prompt, check_seeds, read_shard
    from fastvideo_lightning.prompts.files import read_prompt_file

    read_shard(given.get("shard", "1/1"))
    check_seeds(given.get("seeds", 1))
    if "prompts" not in given:
        return [{"prompt": check_prompt(given["prompt"])}] if "prompt" in given else None
    return read_prompt_file(given["prompts"])


def report_batch(batch: "VideoBatch", output_path: str, *, report: str | None = None) -> None:
    """Make the videos of a batch, print the path of each, and say what became of them.

    Args:
        batch: The videos.
        output_path: Where to, as it was typed.
        report: Of the run, where one is asked for.

    Raises:
        RuntimeError: If any failed.
        click.exceptions.Exit: After Ctrl-C.
    """
    if 0 < batch.num_skipped < batch.total:
        say(f"{_count(batch.num_skipped, batch.total)} in {output_path} already.")
    batch.on_written = _tell
    for path in batch.recovered:
        _tell(path)
    try:
        with batch:
            for _ in batch:
                pass
    except BaseException as stop:
        is_there = os.path.isdir(output_path)  # somebody may have removed it
        there = _count(batch.num_there if is_there else 0, batch.total)
        again = "Run the same command again to make the others."
        say(f"Stopped: {there} in {output_path}. {again}")
        if isinstance(stop, KeyboardInterrupt):
            raise click.exceptions.Exit(STOPPED) from None
        raise
    if batch.failed:
        raise RuntimeError(_describe_failures(batch.failed, batch.total, output_path))
    if batch.num_skipped == batch.total:
        say_all_there(batch.total, output_path, report=report)
    else:
        say(f"{_count(batch.num_there, batch.total)} in {output_path}.")


def say_all_there(total: int, output_path: str, *, report: str | None = None) -> None:
    """Say that there is nothing to do, and how to have it done all the same."""
    them = "it" if total == 1 else "them"
    say(f"{_count(total, total)} in {output_path} already. --no-resume makes {them} anew.")
    if report is not None:
        say(f"Nothing was made, so there is nothing to report: {report} is not written.")


def _tell(path: Path) -> None:
    click.echo(path, file=sys.stdout)  # a bar may stand in for it


def _describe_failures(failed: Sequence[object], total: int, output_path: str) -> str:
    manifest = os.path.join(output_path, "manifest.jsonl")
    return (
        f"{len(failed)} of {total} videos failed, as {manifest} says. "
        "Run the same command again to try them once more."
    )


def _count(number: int, total: int) -> str:
    videos = "video" if total == 1 else "videos"
    return f"{number} of {total} {videos} {'is' if 1 in (number, total) else 'are'}"
