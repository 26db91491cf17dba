"""Starts the processes of a node, and ends them all when one fails."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.fabric.utilities.distributed import (
    _destroy_dist_connection,
    _set_num_threads_if_needed,
)

from fastvideo_lightning.strategies.guard import RankGuard
from fastvideo_lightning.strategies.reporting import RankReporter

_FOLDER = "FASTVIDEO_LIGHTNING_RANKS"
"""Environment variable: where the processes of a node tell each other why they failed."""

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
            os.environ[_FOLDER] = tempfile.mkdtemp(prefix="fastvideo-ranks-")
            self._start_others()
            children = {first_rank + 1 + i: process for i, process in enumerate(self.procs)}
            _start_guard(RankGuard(Path(os.environ[_FOLDER]), first_rank, children=children))
        elif _FOLDER in os.environ:
            rank = first_rank + environment.local_rank()
            _start_guard(RankGuard(Path(os.environ[_FOLDER]), rank, first_rank=first_rank))
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _start_others(self) -> None:
        """Start the other processes: all of them, or after an exception none."""
        try:
            self._call_children_scripts()
        except BaseException:  # Ctrl-C, most likely: Lightning waits a second after each
            for process in self.procs:
                process.kill()
            shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)
            raise


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


def _start_guard(guard: RankGuard | RankReporter) -> None:
    global _guard
    if _guard is None:  # a second Fabric of this process finds the processes started
        _guard = guard
        guard.start()
        atexit.register(guard.finish)
