"""ProgressBar: which stage a video is in, and how long it still takes."""

import sys
from datetime import timedelta

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class ProgressBar:
    """One line per video on stderr: its stage, its denoising steps, their rate, the time left.

    Silent where stderr is no terminal, and on every process but the first.

    Args:
        console: Where to draw; None draws on stderr.
    """

    def __init__(self, *, console: Console | None = None) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._num_videos: int | None = None

    def on_predict_start(self, fabric: L.Fabric, num_batches: int | None = None) -> None:
        """Start drawing, if there is a terminal to draw on."""
        self.teardown()
        self._num_videos = num_batches
        console = self._console or Console(stderr=True)
        is_terminal = sys.stderr.isatty() if self._console is None else console.is_terminal
        if is_terminal and not console.is_dumb_terminal and fabric.is_global_zero:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _StepRateColumn(),
                _ElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._bars.start()

    def on_predict_batch_start(self, batch_idx: int) -> None:
        """Open the video's line."""
        if self._bars is not None:
            several = self._num_videos is None or self._num_videos > 1
            place = f"video {batch_idx + 1}" if several else "video"
            if several and self._num_videos is not None:
                place += f" of {self._num_videos}"
            self._task = self._bars.add_task("", total=None, place=place)
            self._announce("encode")

    def on_denoise_step_start(self, step: int, num_steps: int) -> None:
        """Show how many steps there are."""
        if self._bars is not None and self._task is not None and step == 0:
            self._bars.update(self._task, total=num_steps)
            self._announce("denoise")

    def on_denoise_step_end(self, step: int, num_steps: int) -> None:
        """Move the bar on by one step."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=step + 1, total=num_steps)
            if step + 1 == num_steps:
                self._announce("decode")

    def on_predict_batch_end(self) -> None:
        """Close the video's line and leave it on the screen."""
        if self._bars is not None and self._task is not None:
            self._announce("done")
            self._bars.stop_task(self._task)
            self._task = None

    def on_predict_end(self) -> None:
        """Leave the terminal as it was."""
        self.teardown()

    def on_exception(self) -> None:
        """Leave the terminal as it was, so that the error stands on a line of its own."""
        self.teardown()

    def teardown(self) -> None:
        """Stop drawing; the lines stay."""
        bars, self._bars, self._task = self._bars, None, None
        if bars is not None:
            bars.stop()

    def _announce(self, stage: str) -> None:
        if self._bars is not None and self._task is not None:
            place = next(t for t in self._bars.tasks if t.id == self._task).fields["place"]
            self._bars.update(self._task, description=f"{place}: {stage}")


class _StepRateColumn(ProgressColumn):
    """Steps per second, or seconds per step where that reads better."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.2f} it/s" if speed >= 1 else f"{1 / speed:.2f} s/it")


class _ElapsedColumn(ProgressColumn):
    """Time since the video was begun; rich's own column stops at the last step, before decoding."""

    def render(self, task: Task) -> Text:
        return Text(str(timedelta(seconds=int(task.elapsed or 0))))
