"""Starts the processes of a node, and ends them all when one fails."""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
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
from fastvideo_lightning.strategies.failures import Ledger
from fastvideo_lightning.strategies.reporting import RankReporter
from fastvideo_lightning.strategies.watchdog import RankGuard

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
    if _guard is None or _guard.part():
        _destroy_dist_connection()
        if _guard is not None:
            _guard.has_left()


def _start_guard(guard: RankGuard | RankReporter) -> None:
    global _guard
    if _guard is None:  # a second Fabric of this process finds the processes started
        _guard = guard
        guard.start()
        atexit.register(guard.finish)
