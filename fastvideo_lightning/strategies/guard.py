"""RankGuard: when one process of a node fails, all end, and the last line says which and why.

Note [Ends of ranks]
The first process of a node started the others: it sees their exit codes, they see when it is gone.
An exception that nobody catches is written to a folder that all share, so the reason outlives the
process. Who learns of a failure waits a moment for what others have to say, because a peer that is
gone makes the others fail too; the earliest failure that does not look like such a consequence is
the cause. Then the main thread is asked to end as by SIGTERM, so that it can tidy up; a collective
that waits for the dead does not hear that, and the process is ended by force.
Ctrl-C is no failure: it reaches all processes, and where one has ended by it, the others get some
seconds to do the same. The start of the process group, for one, does not hear it.
Where the first process ends by itself, the others may still have work of their own, and get time
for it: little where it has ended by `sys.exit` with a code or by a `SystemExit`, for then it has
given up.
NCCL closes a group of processes together: who has come to its end waits for the others, and would
wait for ever for one that has gone another way. So each says that it has come to its end, and who
has given up closes nothing and is gone at once.
"""

import _thread
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from fastvideo_lightning.strategies.ending import OwnEnd, leave_at_once
from fastvideo_lightning.strategies.failures import Failure, read_failures

_POLL_S = 0.2
_LISTEN_S = 1.5  # for what other processes have to say
_CAUSE_S = 5.0  # for a process that has failed to be gone
_TIDY_S = 3.0  # for a main thread to end by itself
_LAST_S = 20.0  # for the other processes, after the first has ended without a failure
_AFTER_EXIT_S = 5.0  # for the other processes, after the first has ended with a code
_STOP_S = 5.0  # for a main thread to end by Ctrl-C, once another process has
_INTERRUPTED = 128 + signal.SIGINT
_STOPPED = (-signal.SIGINT, _INTERRUPTED)
_ENDED = "ended-"


class RankGuard(threading.Thread):
    """Watches the other processes of the node, see Note [Ends of ranks].

    Args:
        folder: Where the processes leave why they failed.
        rank: This process.
        first_rank: The node's first process.
        children: In the first process the others, by rank.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        *,
        first_rank: int | None = None,
        children: Mapping[int, "subprocess.Popen[bytes]"] | None = None,
    ) -> None:
        super().__init__(daemon=True, name="rank-guard")
        self._folder = folder
        self._rank = rank
        self._first_rank = rank if first_rank is None else first_rank
        self._children = children or {}
        self._parent = os.getppid()
        self._failed_here = threading.Event()
        self._is_tidy = threading.Event()
        self._is_ending = False
        self._is_told = False
        self._is_stopped = False
        self._show = sys.excepthook
        self._own_end = OwnEnd()
        self._has_parted: bool | None = None

    def start(self) -> None:
        """Begin to watch; to be called in the main thread."""
        sys.excepthook = self._on_uncaught
        self._own_end.watch()
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        super().start()

    def run(self) -> None:
        """Watch until a process ends too early, then end this one, and in the first process all."""
        while not (self._failed_here.is_set() or self._find_dead()):
            if self._find_stopped():
                self._stop()
                return
            time.sleep(_POLL_S)
        if self._failed_here.wait(_CAUSE_S if self._is_ending else _LISTEN_S):
            time.sleep(_LISTEN_S + 2 * _TIDY_S)  # by then the main thread has ended the process
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
        own.write(self._folder)
        cause = self._find_cause()
        until = time.monotonic() + _CAUSE_S * own.follows
        while (cause is None or cause.follows) and time.monotonic() < until:
            time.sleep(_POLL_S)
            cause = self._find_cause()
        self._failed_here.set()
        return cause is None or cause.rank == self._rank

    def part(self) -> bool:
        """At the end of the process, before it leaves the process group.

        In the first process, wait until the others have come to their end too, or end them.

        Returns:
            Whether all have come to their end, so that closing the group waits for nobody.
        """
        self._is_ending = True
        self._is_tidy.set()
        code = self._own_end.find_code()
        if not self._children:
            self._has_parted = code is None and not self._find_dead()
            if self._has_parted:
                self._say_ended()
            return self._has_parted
        if self._failed_here.is_set():
            cause = self._find_cause()
            until = time.monotonic() + _TIDY_S * self._is_stopped  # Ctrl-C reached them too
            while self._find_alive() and time.monotonic() < until:
                time.sleep(_POLL_S / 4)
            self._end_children()
            if not self._is_told:
                self._leave(cause)
        until = time.monotonic() + (_LAST_S if code is None else _AFTER_EXIT_S)
        while at_work := self._find_alive() - self._find_ended():
            if time.monotonic() > until:
                self._leave_behind(min(at_work), code)
            time.sleep(_POLL_S / 4)
        self._has_parted = not self._find_dead() and not self._failed_here.is_set()
        return self._has_parted

    def finish(self) -> None:
        """At the end of the process, behind `part`: in the first one, wait for the others."""
        if self._has_parted is None:  # there was no group to leave
            self.part()
        if self._find_dead() and not self._is_told:
            self.join()  # it says why, and ends the process
        until = time.monotonic() + _LAST_S
        while (alive := self._find_alive()) and self._has_parted:
            if time.monotonic() > until:
                self._leave_behind(min(alive), None)
            time.sleep(_POLL_S / 4)
        if self._children:
            shutil.rmtree(self._folder, ignore_errors=True)
        if not self._has_parted:
            code = self._own_end.find_code() or 1
            leave_at_once(_INTERRUPTED if self._is_stopped else code)

    def _on_uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if self.note(error):
            self._show(kind, error, trace)

    def _find_dead(self) -> bool:
        """Whether another process has failed, as far as this one sees by itself."""
        if not self._children:
            return os.getppid() != self._parent
        return any(child.poll() not in (None, 0, *_STOPPED) for child in self._children.values())

    def _find_stopped(self) -> bool:
        """Whether another process has ended by Ctrl-C."""
        return any(child.poll() in _STOPPED for child in self._children.values())

    def _stop(self) -> None:
        """Let the main thread end by Ctrl-C too; where it does not hear it, end the process."""
        if self._is_tidy.wait(_STOP_S):
            return
        self._end_children()
        shutil.rmtree(self._folder, ignore_errors=True)
        print("Stopped.", file=sys.stderr, flush=True)
        os._exit(_INTERRUPTED)

    def _find_cause(self) -> Failure | None:
        failures = read_failures(self._folder)
        for rank, child in self._children.items():
            if child.poll() not in (None, 0, *_STOPPED) and rank not in failures:
                failures[rank] = Failure.of_exit(rank, child.returncode)
        if not self._children and os.getppid() != self._parent:
            gone = Failure(False, 0.0, self._first_rank, "it is gone without a word, as if killed")
            failures.setdefault(self._first_rank, gone)
        return min(failures.values(), default=None)

    def _find_alive(self) -> set[int]:
        return {rank for rank, child in self._children.items() if child.poll() is None}

    def _find_ended(self) -> set[int]:
        """Which have come to the end of their work, and wait for this one to leave the group."""
        return {int(path.name.removeprefix(_ENDED)) for path in self._folder.glob(f"{_ENDED}*")}

    def _say_ended(self) -> None:
        with contextlib.suppress(OSError):  # the first process has removed the folder
            (self._folder / f"{_ENDED}{self._rank}").touch()

    def _end_children(self) -> None:
        for stop, seconds in (("terminate", _TIDY_S), ("kill", _TIDY_S)):
            alive = [child for child in self._children.values() if child.poll() is None]
            for child in alive:
                getattr(child, stop)()
            until = time.monotonic() + seconds
            for child in alive:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(until - time.monotonic(), 0.0))

    def _leave_behind(self, rank: int, code: int | None) -> None:
        """End the others, of which `rank` is at work or waits for this process, and then it."""
        self._end_children()
        own = Failure.of_exit(self._rank, code or 0)
        if code is None:
            reason = f"it ended while rank {rank} was at work, and {_LAST_S:.0f} s later still was"
            own = replace(own, reason=reason)
        elif not self._own_end.exit_codes:
            own = replace(own, reason="it ended by SystemExit")
        self._leave(own, code=code or 1)

    def _leave(self, cause: Failure | None, *, code: int = 1) -> None:
        """End the process at once; the first process to come here speaks for all."""
        if cause is not None and self._speaks():
            sys.stdout.flush()
            print(cause.line, file=sys.stderr, flush=True)
        if self._children or os.getppid() != self._parent:
            shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(code)

    def _speaks(self) -> bool:
        if self._children:
            return True
        if os.getppid() == self._parent:
            return False
        try:
            (self._folder / "said").touch(exist_ok=False)
        except OSError:
            return False
        time.sleep(_LISTEN_S)  # the other processes end meanwhile
        return True
