"""The bars of a run: how far a video, its batch and the reading of the weights are."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import lightning as L
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from fastvideo_lightning.offload.tensors.sources import StoredBytes


class ProgressBar:
    """One line for the video being made on stderr, and of several one for all of them.

    The video's line shows its stage (encode, denoise, decode, write), its denoising steps, their
    rate and the time that they still take. A video is written while the next one is made: both
    lines are there then. The line of a single video stays when it is done; those of several make
    room.

    Silent where stderr is no terminal, and on every process but the first.

    Args:
        console: Where to draw; None draws on stderr.
    """

    def __init__(self, *, console: Console | None = None) -> None:
        self._console = console
        self._terminal: Console | None = None
        self._bars: Progress | None = None
        self._num_videos: int | None = None
        self._batch: TaskID | None = None
        self._video: TaskID | None = None
        self._written: TaskID | None = None
        self._batch_idx = 0

    def on_predict_start(self, fabric: L.Fabric, num_batches: int | None = None) -> None:
        """Find out whether there is a terminal to draw on."""
        self.teardown()
        self._num_videos = num_batches
        self._terminal = terminal_of(self._console) if fabric.is_global_zero else None

    def on_predict_batch_start(self, batch_idx: int) -> None:
        """Open the video's line."""
        if self._terminal is None:
            return
        if self._bars is None:
            self._bars = _make_bars(self._terminal)
            self._bars.start()
        several, place = self._num_videos != 1, "video"
        if several:
            total = self._num_videos
            place = f"video {batch_idx + 1}" + (f" of {total}" if total else "")
            if self._batch is None:
                self._batch = self._bars.add_task("all videos", total=total, is_batch=True)
            self._bars.update(self._batch, completed=batch_idx)
        self._batch_idx = batch_idx
        self._video = self._bars.add_task("", total=None, place=place)
        self._announce(self._video, "encode")

    def on_denoise_step_start(self, step: int, num_steps: int) -> None:
        """Show how many steps there are."""
        if self._bars is not None and self._video is not None and step == 0:
            self._bars.update(self._video, total=num_steps)
            self._announce(self._video, "denoise")

    def on_denoise_step_end(self, step: int, num_steps: int) -> None:
        """Move the bars on by one step."""
        if self._bars is None or self._video is None:
            return
        self._bars.update(self._video, completed=step + 1, total=num_steps)
        if self._batch is not None:
            # A part of the video, so that the time left is known before the first is made.
            self._bars.update(self._batch, completed=self._batch_idx + step / num_steps)
        if step + 1 == num_steps:
            self._announce(self._video, "decode")

    def on_predict_batch_end(self) -> None:
        """The video is made."""
        if self._bars is None or self._video is None:
            return
        self._announce(self._video, "done")
        self._bars.stop_task(self._video)
        if self._batch is not None:
            self._bars.update(self._batch, completed=self._batch_idx + 1)
            self._bars.update(self._video, visible=False)

    def on_write_start(self) -> None:
        """The video that was made last is being written."""
        if self._bars is not None and self._video is not None:
            self._written = self._video
            self._announce(self._written, "write")
            self._bars.update(self._written, visible=True)

    def on_write_end(self) -> None:
        """Its file is whole; called from the thread that wrote it."""
        written, self._written = self._written, None
        if self._bars is not None and written is not None:
            self._announce(written, "done")
            self._bars.update(written, visible=self._batch is None)

    def on_predict_end(self) -> None:
        """Leave the terminal as it was."""
        self.teardown()

    def on_exception(self, exception: BaseException) -> None:
        """Leave the terminal as it was, so that the error stands on a line of its own."""
        if self._video is not None and self._video != self._written:
            self._announce(self._video, "failed" if isinstance(exception, Exception) else "stopped")
        self.teardown()

    def teardown(self) -> None:
        """Stop drawing; the lines stay."""
        bars, self._bars = self._bars, None
        self._batch = self._video = self._written = None
        if bars is not None:
            bars.stop()

    def _announce(self, line: TaskID, stage: str) -> None:
        if self._bars is not None:
            place = next(task for task in self._bars.tasks if task.id == line).fields["place"]
            self._bars.update(line, description=f"{place}: {stage}")


def terminal_of(console: Console | None) -> Console | None:
    """Return the console, or by default stderr's, if it is a terminal that can be drawn on."""
    found = console or Console(stderr=True)
    is_terminal = found.is_terminal if console else sys.stderr.isatty()
    return found if is_terminal and not found.is_dumb_terminal else None


def _make_bars(console: Console) -> Progress:
    return _Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _StepRateColumn(),
        _ElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        # What goes to stdout is drawn above the bars if both are the terminal; else it is let be.
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=24 * 3600,  # a step may take minutes
    )


class _Bars(Progress):
    """Bars that leave room at the end of their lines, where a terminal writes the ^C of Ctrl-C.

    In a full line it would wrap, and what is drawn over the bars next would miss them by a line.
    """

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bars, narrower than the terminal."""
        yield _Narrowed(self.make_tasks_table(self.tasks))


class _Narrowed:
    def __init__(self, inside: RenderableType) -> None:
        self._inside = inside

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._inside, options.update_width(options.max_width - 3))


class _StepRateColumn(ProgressColumn):
    """Steps per second, or seconds per step where that reads better."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed or "is_batch" in task.fields:
            return Text("")
        return Text(f"{speed:.2f} it/s" if speed >= 1 else f"{1 / speed:.2f} s/it")


class _ElapsedColumn(ProgressColumn):
    """Time since the video was begun; rich's own column stops at the last step, before decoding."""

    def render(self, task: Task) -> Text:
        return Text(str(timedelta(seconds=int(task.elapsed or 0))))


@contextmanager
def show_loading(
    sources: Mapping[str, StoredBytes],
    read_bytes: Callable[[], int],
    *,
    console: Console | None = None,
) -> Iterator[None]:
    """Draw on stderr how much has been read, until the context ends; then the line goes.

    Args:
        sources: The weights, by FQN. What is mapped instead of being read is passed over.
        read_bytes: Says how many bytes the process has read since it began; asked again and again.
        console: Where to draw; None draws on stderr, where that is a terminal.
    """
    terminal = terminal_of(console)
    if terminal is None or not sources:
        yield
        return
    with _LoadingBar(terminal, _count_bytes(sources), read_bytes):
        yield


def _count_bytes(sources: Mapping[str, StoredBytes]) -> int:
    """Return the bytes in the files; a tied weight lies there once."""
    sizes = {
        (source.path, source.offset): source.shape.numel() * source.stored_dtype.itemsize
        for source in sources.values()
    }
    return sum(sizes.values())


class _LoadingBar(Progress):
    """Asks how far things are whenever it is drawn."""

    def __init__(self, console: Console, total: int, read_bytes: Callable[[], int]) -> None:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        ]
        self._read_bytes, self._before = read_bytes, read_bytes()
        super().__init__(*columns, console=console, transient=True)
        self._line = self.add_task("loading weights", total=total)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.tasks:  # not yet while it is being made
            self.update(self._line, completed=self._read_bytes() - self._before)
        return super().get_renderables()
