"""RankGuard: when one process of a node fails, all end, and the last line says which and why.

Note [Ends of ranks]
The first process of a node started the others: it sees their exit codes, they see when it is gone.
On Linux the system tells them too, from the first moment on (`rank_start.py`).
An exception that nobody catches is written to a ledger that all share, so the reason outlives the
process. Who learns of a failure waits a moment for what others have to say, because a peer that is
gone makes the others fail too; the earliest failure that does not look like such a consequence is
the cause. Then the main thread is asked to end as by SIGTERM, so that it can tidy up; a collective
that waits for the dead does not hear that, and the process is ended by force.
Ctrl-C is no failure: it reaches all processes, and where one has ended by it, the others get some
seconds to do the same. The start of the process group, for one, does not hear it.
A process that has come to the end of its work says so. One that ends with code 0 without a word,
as by `os._exit(0)`, has failed too: the others would wait for it.
Where the first process ends by itself, the others may still have work of their own, and get time
for it: more where all have come through a run together, less where it may have given up in the
middle of one. The command says with which code it ends; 0 means that all is made, and then nothing
that becomes of the others changes it.
NCCL closes a group of processes together: who has come to its end waits for the others, and would
wait for ever for one that has gone another way. So who has failed closes nothing and is gone at
once, and who ends in the middle of a run, by `sys.exit` most likely, waits some seconds only.
"""

import _thread
import contextlib
import dis
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from fastvideo_lightning.strategies.failures import Failure, Ledger

_POLL_S = 0.2
_LISTEN_S = 1.5  # for what other processes have to say
_CAUSE_S = 5.0  # for a process that has failed to be gone
_TIDY_S = 3.0  # for a main thread to end by itself
_LAST_S = 20.0  # for the other processes, after the first has ended behind a run
_IN_RUN_S = 8.0  # for them where it has ended in the middle of one, and for a group to close
_AFTER_EXIT_S = 5.0  # for them where it has said its code
_STOP_S = 5.0  # for a main thread to end by Ctrl-C, once another process has
_INTERRUPTED = 128 + signal.SIGINT
_LEFT = "it ended by sys.exit while others were at work"
_STOPPED = (-signal.SIGINT, _INTERRUPTED)


class RankGuard(threading.Thread):
    """Watches the other processes of the node, see Note [Ends of ranks].

    Args:
        ledger: Where the processes say why they failed.
        rank: This process.
        first_rank: The node's first process.
        parent: The first process's id, in the others.
        children: In the first process the others, by rank.

    Attributes:
        is_run_over: Whether all have come through the last run together.
    """

    def __init__(
        self,
        ledger: Ledger,
        rank: int,
        *,
        first_rank: int | None = None,
        parent: int | None = None,
        children: Mapping[int, "subprocess.Popen[bytes]"] | None = None,
    ) -> None:
        super().__init__(daemon=True, name="rank-guard")
        self._ledger = ledger
        self._rank = rank
        self._first_rank = rank if first_rank is None else first_rank
        self._children = children or {}
        self._parent = parent
        self.is_run_over = False
        self._failed_here = threading.Event()
        self._is_tidy = threading.Event()
        self._is_ending = False
        self._is_told = False
        self._is_stopped = False
        self._show = sys.excepthook
        self._exit_code: int | None = None  # as far as it was said
        self._has_parted: bool | None = None
        self._closes_until: float | None = None
        self._script = Script()

    def start(self) -> None:
        """Begin to watch; to be called in the main thread."""
        sys.excepthook = self._on_uncaught
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        super().start()

    def run(self) -> None:
        """Watch until a process ends too early, then end this one, and in the first process all."""
        while True:
            if self._failed_here.is_set() or self._find_dead():
                if self._failed_here.wait(_CAUSE_S if self._is_ending else _LISTEN_S):
                    time.sleep(_LISTEN_S + 2 * _TIDY_S)  # by then the main thread has ended it all
                if self._failed_here.is_set() or self._find_dead():  # not if all is made meanwhile
                    break
            if self._find_stopped():
                self._stop()
                return
            if self._closes_until is not None and time.monotonic() > self._closes_until:
                self._ledger.note(Failure(False, time.time(), self._rank, _LEFT))
                self._leave(None)  # the others wait for what it was to do with them
            time.sleep(_POLL_S)
        cause = self._find_cause()
        if not self._is_ending:
            _thread.interrupt_main(signal.SIGTERM)
        self._end_children()
        self._is_tidy.wait(_TIDY_S)
        self._leave(cause)

    def note(self, error: BaseException, *, is_told: bool = False) -> bool:
        """Note an exception that ends this process.

        Args:
            error: The exception.
            is_told: The user is told all of it by who notes it: there is no last line.

        Returns:
            Whether to show it. The consequence of another's failure is not what to read.
        """
        self._is_told = self._is_told or is_told or isinstance(error, KeyboardInterrupt)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            if isinstance(error, KeyboardInterrupt):
                self._is_stopped = True
                self._failed_here.set()
                return bool(self._children)  # one process shows it
            return True
        self._is_ending = True
        own = Failure.of(self._rank, error)
        self._ledger.note(own)
        cause = self._find_cause()
        until = time.monotonic() + _CAUSE_S * own.follows
        while (cause is None or cause.follows) and time.monotonic() < until:
            time.sleep(_POLL_S)
            cause = self._find_cause()
        self._failed_here.set()
        return cause is None or cause.rank == self._rank

    def note_exit(self, code: int) -> None:
        """Note by what code this process is to end; 0 says that all is made."""
        self._exit_code = code

    def before_group_exit(self) -> bool:
        """At the end of the process, before it leaves the process group.

        In the first process, wait until the others have come to their end too, or end them.

        Returns:
            Whether nobody is known to have given up, so that the group can be closed by all.
        """
        self._is_ending = True
        self._is_tidy.set()
        if self._parent is not None:
            self._has_parted = not (self._gives_up() or self._find_dead())
            if self._has_parted and dist.is_initialized():
                self._ledger.say_ended(self._rank)
        else:
            self._wait_for_work()
            self._has_parted = not (self._gives_up() or self._find_lost())
        is_well = self.is_run_over or self._exit_code == 0 or self._script.has_returned()
        if self._has_parted and not is_well:
            self._closes_until = time.monotonic() + _IN_RUN_S
        return self._has_parted

    def has_left(self) -> None:
        """The process group is closed."""
        self._closes_until = None

    def finish(self) -> None:
        """At the end of the process, behind `part`: in the first one, wait for the others."""
        if self._has_parted is None:  # there was no group to leave
            self.before_group_exit()
            self.has_left()
        if self._find_dead() and not self._is_told:
            self.join()  # it says why, and ends the process
        until = time.monotonic() + (_LAST_S if self._exit_code is None else _AFTER_EXIT_S)
        while self._find_alive() and self._has_parted and time.monotonic() < until:
            time.sleep(_POLL_S / 4)
        hung = self._find_alive()  # they have come to their end, and only do not go
        self._end_children()
        if self._find_dead() and not (self._is_told or hung):
            self.join()
        if not self._has_parted:
            leave_at_once(_INTERRUPTED if self._is_stopped else self._exit_code)

    def _wait_for_work(self) -> None:
        """In the first process: have the others come to the end of their work, or end them."""
        if self._failed_here.is_set():
            cause = self._find_cause()
            until = time.monotonic() + _TIDY_S * self._is_stopped  # Ctrl-C reached them too
            while self._find_alive() and time.monotonic() < until:
                time.sleep(_POLL_S / 4)
            self._end_children()
            if not self._is_told:
                self._leave(cause)
        seconds = _LAST_S if self.is_run_over else _IN_RUN_S
        if self._exit_code is not None:
            seconds = _AFTER_EXIT_S
        until = time.monotonic() + seconds
        while at_work := self._find_alive() - self._ledger.ended:
            if time.monotonic() > until:
                self._end_children()
                if self._exit_code == 0:
                    return
                self._leave_behind(min(at_work), seconds)
            time.sleep(_POLL_S / 4)

    def _gives_up(self) -> bool:
        """Whether this process ends by a failure, as far as it was said."""
        return self._failed_here.is_set() or self._exit_code not in (None, 0)

    def _on_uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if self.note(error):
            self._show(kind, error, trace)

    def _find_dead(self) -> bool:
        """Whether another process has failed, as far as this one sees by itself."""
        if self._parent is not None:
            return os.getppid() != self._parent
        return self._exit_code != 0 and bool(self._find_lost())

    def _find_lost(self) -> dict[int, int]:
        """In the first process: the exit codes of those that are gone before their end, by rank."""
        codes = {rank: child.poll() for rank, child in self._children.items()}
        gone = {r: code for r, code in codes.items() if code is not None and code not in _STOPPED}
        if 0 not in gone.values():
            return gone
        ended = self._ledger.ended
        return {rank: code for rank, code in gone.items() if code or rank not in ended}

    def _find_stopped(self) -> bool:
        """Whether another process has ended by Ctrl-C."""
        return any(child.poll() in _STOPPED for child in self._children.values())

    def _stop(self) -> None:
        """Let the main thread end by Ctrl-C too; where it does not hear it, end the process."""
        if self._is_tidy.wait(_STOP_S):
            return
        self._end_children()
        print("Stopped.", file=sys.stderr, flush=True)
        os._exit(_INTERRUPTED)

    def _find_cause(self) -> Failure | None:
        failures = self._ledger.failures
        for rank, code in self._find_lost().items():
            if rank not in failures:
                failures[rank] = Failure.of_exit(rank, code)
        if self._parent is not None and os.getppid() != self._parent:
            gone = Failure(False, 0.0, self._first_rank, "it is gone without a word, as if killed")
            failures.setdefault(self._first_rank, gone)
        return min(failures.values(), default=None)

    def _find_alive(self) -> set[int]:
        return {rank for rank, child in self._children.items() if child.poll() is None}

    def _end_children(self) -> None:
        for stop, seconds in (("terminate", _TIDY_S), ("kill", _TIDY_S)):
            alive = [child for child in self._children.values() if child.poll() is None]
            for child in alive:
                getattr(child, stop)()
            until = time.monotonic() + seconds
            for child in alive:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(until - time.monotonic(), 0.0))

    def _leave_behind(self, rank: int, seconds: float) -> NoReturn:
        """End the process once the others are ended, of which `rank` was at work or waited."""
        own = Failure.of_exit(self._rank, self._exit_code or 0)
        if not self._exit_code:
            reason = f"it ended while rank {rank} was at work, and {seconds:.0f} s later still was"
            own = replace(own, reason=reason)
        self._leave(own)

    def _leave(self, cause: Failure | None) -> NoReturn:
        """End the process at once; the first process to come here speaks for all."""
        if cause is not None and self._speaks():
            sys.stdout.flush()
            print(cause.line, file=sys.stderr, flush=True)
        os._exit(self._exit_code or 1)

    def _speaks(self) -> bool:
        if self._parent is None:
            return True
        if os.getppid() == self._parent or not self._ledger.speak(self._rank):
            return False
        time.sleep(_LISTEN_S)  # the other processes end meanwhile
        return True


def leave_at_once(code: int | None) -> None:
    """End the process where a group of NCCL is open that nobody is to wait for.

    Args:
        code: The exit code; None where none was said, which ends it by 1.
    """
    if dist.is_initialized() and dist.get_backend() == "nccl":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if code is None else code)


class Script:
    """The outermost call of the main thread; to be made in it, long before its end."""

    def __init__(self) -> None:
        self._frame = sys._getframe()
        while self._frame.f_back is not None:
            self._frame = self._frame.f_back

    def has_returned(self) -> bool:
        """In an `atexit` function: whether it has come to its last line, and not to `sys.exit`.

        Nobody is told of a `SystemExit`; that there was one shows in a call that has not come to
        its return.
        """
        last = self._frame.f_code.co_code[self._frame.f_lasti]
        return dis.opname[last].startswith("RETURN_")
