"""RankReporter: says why a rank failed, where others started the ranks and end them."""

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from types import TracebackType

from fastvideo_lightning.strategies.failures import Failure
from fastvideo_lightning.strategies.watchdog import Script, leave_at_once
from fastvideo_lightning.version import STARTED_BY

_GONE_S = 1.0  # for who started the ranks to find the one that failed first, and end this one
_POLL_S = 0.2
_TIDY_S = 3.0  # for a main thread to end by itself
_CLOSE_S = 8.0  # for a group to close that this process may have left in the middle of a run


class RankReporter(threading.Thread):
    """Tells torchrun's report, and stderr, why this rank failed, and ends it with who started it.

    torchrun and `fabric run`, which is torchrun too, end all ranks when one fails, and name it;
    the cause they know where it was left in a file of theirs. SLURM says nothing but the code.
    Where torchrun itself is killed, nobody would end the ranks, nor where the process is that has
    spawned them.

    Args:
        rank: This process.

    Attributes:
        is_run_over: Whether all have come through the last run together.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(daemon=True, name="rank-reporter")
        self._rank = rank
        self._last_line: str | None = None
        self._show = sys.excepthook
        self._script = Script()
        self.is_run_over = False
        self._failed = False
        self._exit_code: int | None = None
        self._has_parted = True
        self._closes_until: float | None = None

    def start(self) -> None:
        """Begin to note what nobody catches; to be called in the main thread."""
        sys.excepthook = self._on_uncaught
        super().start()

    def run(self) -> None:
        """Watch whether the group closes, and who started this process; then end it too."""
        while not _is_orphan():
            if self._closes_until is not None and time.monotonic() > self._closes_until:
                os._exit(self._exit_code or 1)
            time.sleep(_POLL_S)
        _thread.interrupt_main(signal.SIGTERM)
        time.sleep(_TIDY_S)
        reason = "who started it is gone without a word, as if killed"
        sys.stderr.write(f"Error: rank {self._rank} failed: {reason}\n")
        sys.stderr.flush()
        os._exit(1)

    def note(self, error: BaseException, *, is_told: bool = False) -> bool:
        """Note an exception that ends this process; as `RankGuard.note`."""
        if isinstance(error, SystemExit):
            return True
        self._failed = True
        if isinstance(error, KeyboardInterrupt):
            return True
        own = Failure.of(self._rank, error)
        if own.follows:
            time.sleep(_GONE_S)
            return True
        _tell_torchrun(error)
        self._last_line = None if is_told else own.line
        return True

    def note_exit(self, code: int) -> None:
        """Note by what code this process is to end."""
        self._exit_code = code

    def part(self) -> bool:
        """Whether to close the process group, which waits for all; as `RankGuard.part`."""
        self._has_parted = not self._failed and not self._exit_code
        is_well = self.is_run_over or self._exit_code == 0 or self._script.has_returned()
        if self._has_parted and not is_well:
            self._closes_until = time.monotonic() + _CLOSE_S
        return self._has_parted

    def has_left(self) -> None:
        """The process group is closed."""
        self._closes_until = None

    def finish(self) -> None:
        """At the end of the process: say why."""
        if self._last_line is not None:
            sys.stdout.flush()
            sys.stderr.write(f"{self._last_line}\n")
        if not self._has_parted:
            leave_at_once(self._exit_code)

    def _on_uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if self.note(error):
            self._show(kind, error, trace)


def _is_orphan() -> bool:
    """Whether torchrun, or the process that has spawned this one, is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        return not parent.is_alive()
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != STARTED_BY


def _tell_torchrun(error: BaseException) -> None:
    """Leave the exception in the file that torchrun names to each rank; without one, do nothing."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    trace = error.__traceback__
    try:
        raise error
    except BaseException:  # it writes the traceback of what is being caught
        get_error_handler().record_exception(error)
    finally:
        error.__traceback__ = trace
