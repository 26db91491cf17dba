"""RankReporter: says why a rank failed, where others started the ranks and end them."""

import sys
import time
from types import TracebackType

from fastvideo_lightning.strategies.ending import OwnEnd, leave_at_once
from fastvideo_lightning.strategies.failures import Failure

_GONE_S = 1.0  # for who started the ranks to find the one that failed first, and end this one


class RankReporter:
    """Tells torchrun's report, and stderr, why this rank failed.

    torchrun and `fabric run`, which is torchrun too, end all ranks when one fails, and name it;
    the cause they know where it was left in a file of theirs. SLURM says nothing but the code.

    Args:
        rank: This process.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._last_line: str | None = None
        self._show = sys.excepthook
        self._own_end = OwnEnd()
        self._has_parted = True

    def start(self) -> None:
        """Begin to note what nobody catches."""
        self._own_end.watch()
        sys.excepthook = self._on_uncaught

    def note(self, error: BaseException, *, is_told: bool = False) -> bool:
        """Note an exception that ends this process; as `RankGuard.note`."""
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return True
        own = Failure.of(self._rank, error)
        if own.follows:
            time.sleep(_GONE_S)
            return True
        _tell_torchrun(error)
        self._last_line = None if is_told else own.line
        return True

    def part(self) -> bool:
        """Whether to close the process group, which waits for all; as `RankGuard.part`."""
        self._has_parted = self._own_end.find_code() is None
        return self._has_parted

    def finish(self) -> None:
        """At the end of the process: say why."""
        if self._last_line is not None:
            sys.stdout.flush()
            sys.stderr.write(f"{self._last_line}\n")
        if not self._has_parted:
            leave_at_once(self._own_end.find_code() or 1)

    def _on_uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if self.note(error):
            self._show(kind, error, trace)


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
