"""WriteBehind: what was made is written while the next thing is made."""

from collections.abc import Callable
from threading import Thread


class WriteBehind:
    """Runs one write at a time on a thread beside the caller's.

    A second write waits for the first, so that at most one thing that was made is held here, and
    writes keep their order. What a write raises is raised by the next call.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def put(self, write: Callable[[], None], announce: Callable[[str], None]) -> None:
        """Finish the write before, then begin this one.

        Args:
            write: Run on the thread.
            announce: Told `on_write_start` now, and from the thread `on_write_end` however it ends.
        """
        self.finish()
        announce("on_write_start")
        self._thread = Thread(target=self._run, args=(write, announce), name="write-behind")
        self._thread.start()

    def finish(self) -> None:
        """Wait until nothing is being written; raises what the write raised."""
        if self._thread is not None:
            self._thread.join()  # a Ctrl-C that comes here leaves it to the next call
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[], None], announce: Callable[[str], None]) -> None:
        try:
            try:
                write()
            finally:
                announce("on_write_end")
        except BaseException as error:
            self._error = error
