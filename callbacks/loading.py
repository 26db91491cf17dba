"""How many bytes of the weights are read, while they are."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fastvideo_lightning.callbacks.progress import terminal_of
from fastvideo_lightning.offload.tensors.sources import StoredBytes


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
