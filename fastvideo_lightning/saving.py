"""Saving: who writes the videos of the run that is going on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Saving:
    """Stands among the callbacks for the writer of the current run, or for none.

    The callbacks of a Fabric are fixed when it is made; the folder of a video is not.
    """

    def __init__(self) -> None:
        self._writer: object | None = None
        self._is_running = False

    @contextmanager
    def by(self, writer: object | None) -> Iterator[None]:
        """Have `writer` hear the moments of the run inside the context; None: nothing is written.

        Raises:
            RuntimeError: If a run is going on, as a batch is that was not read to its end.
        """
        if self._is_running:
            raise RuntimeError(
                "This generator is in the middle of a batch. Read the videos of the batch to the "
                "end, or close() it."
            )
        self._writer, self._is_running = writer, True
        try:
            yield
        finally:
            self._writer, self._is_running = None, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)
