"""Starts the processes of a node, and ends them all when one fails.

Where others started the ranks and end them, it says why one failed.
"""

import _thread
import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import (
    _HYDRA_AVAILABLE,
    _basic_subprocess_cmd,
    _hydra_subprocess_cmd,
    _SubprocessScriptLauncher,
)
from lightning.fabric.utilities.distributed import (
    _destroy_dist_connection,
    _set_num_threads_if_needed,
)

from fastvideo_lightning.strategies import rank_start
from fastvideo_lightning.strategies.failures import Failure, Ledger
from fastvideo_lightning.strategies.watchdog import RankGuard, Script, leave_at_once
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

    def before_group_exit(self) -> bool:
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


_STARTED = "FASTVIDEO_LIGHTNING_RANKS"
"""Environment variable of a process that another of this package has started: the other's id, and
the number of the open file in which the processes of a node tell each other why they fail."""

_guard: RankGuard | RankReporter | None = None


class GuardedLauncher(_SubprocessScriptLauncher):
    """Starts this script again for each further device, as Lightning does, and guards the ranks.

    Lightning watches the children and kills the first process too, before it could say why; and
    nothing watches the first. Where others started the processes (torchrun, `fabric run`, SLURM),
    they watch them.
    """

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start the other processes if nobody has, then call the function."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        first_rank = environment.node_rank() * self.num_processes
        if not environment.creates_processes_externally:
            ledger = Ledger.create()
            self._start_others(ledger)
            children = {first_rank + 1 + i: process for i, process in enumerate(self.procs)}
            _start_guard(RankGuard(ledger, first_rank, children=children))
        elif _STARTED in os.environ:
            parent, file_number = map(int, os.environ.pop(_STARTED).split(":"))
            ledger, rank = Ledger.inherit(file_number), first_rank + environment.local_rank()
            _start_guard(RankGuard(ledger, rank, first_rank=first_rank, parent=parent))
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _start_others(self, ledger: Ledger) -> None:
        """Start the other processes: all of them, or after an exception none."""
        self._check_can_spawn_children()
        environment = self.cluster_environment
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        os.environ["NODE_RANK"] = str(environment.node_rank())
        os.environ["LOCAL_RANK"] = str(environment.local_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        own = {_STARTED: f"{os.getpid()}:{ledger.file_number}"}
        try:
            for local_rank in range(1, self.num_processes):
                command, folder = _command(local_rank)
                process = subprocess.Popen(
                    [*_tied_to_this(), *command],
                    env={**os.environ, **own, "LOCAL_RANK": str(local_rank)},
                    cwd=folder,
                    pass_fds=(ledger.file_number,),
                )
                self.procs.append(process)
        except BaseException:  # Ctrl-C, most likely
            for process in self.procs:
                process.kill()
            raise


def _command(local_rank: int) -> tuple[Sequence[str], str | None]:
    """What starts this script again, and in which folder, as Lightning finds it."""
    if _HYDRA_AVAILABLE:
        from hydra.core.hydra_config import HydraConfig

        if HydraConfig.initialized():
            return _hydra_subprocess_cmd(local_rank)
    return _basic_subprocess_cmd(), None


def _tied_to_this() -> list[str]:
    """What comes before a command that is to end when this process does.

    The system ties it to the thread that starts it, so that only the main thread's will do.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [sys.executable, "-I", "-S", str(Path(rank_start.__file__)), str(os.getpid())]


def note_failure(error: BaseException, *, is_told: bool = False) -> bool:
    """Tell the other processes that this one is about to end, and why; alone, do nothing.

    For who catches an exception that ends the process; one that nobody catches is noted by itself.

    Args:
        error: The exception.
        is_told: The user is told all of it: which process it was is no matter.

    Returns:
        Whether to show it; not where it only follows from another process's failure.
    """
    return _guard is None or _guard.note(error, is_told=is_told)


def note_exit(code: int) -> None:
    """Say by what code this process is about to end; alone, do nothing.

    Args:
        code: 0 says that all is made, whatever becomes of other processes from here on.
    """
    if _guard is not None:
        _guard.note_exit(code)


def note_run(*, is_over: bool) -> None:
    """Say that a run begins in which processes wait for each other, or that all are through it."""
    if _guard is not None:
        _guard.is_run_over = is_over


def report_failures(rank: int) -> None:
    """Have this process say why it fails, unless it guards the others or is guarded.

    For ranks that torchrun, `fabric run` or SLURM has started.
    """
    _start_guard(RankReporter(rank))


def leave_group_together() -> None:
    """At the end of the process, close its group only where no other process is left waiting.

    To be called when the group is made. Lightning closes it in any case, and with NCCL that waits
    for all processes, whatever has become of them.
    """
    atexit.unregister(_destroy_dist_connection)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if _guard is None or _guard.before_group_exit():
        _destroy_dist_connection()
        if _guard is not None:
            _guard.has_left()


def _start_guard(guard: RankGuard | RankReporter) -> None:
    global _guard
    if _guard is None:  # a second Fabric of this process finds the processes started
        _guard = guard
        guard.start()
        atexit.register(guard.finish)
