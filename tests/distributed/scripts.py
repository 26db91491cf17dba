"""Runs a script in several processes and reads what each of them wrote."""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a process of a world: one thread, nothing of a world around it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LT_")}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        inherited.pop(name, None)
    paths = [str(ROOT), str(ROOT / "tests"), inherited.get("PYTHONPATH", "")]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",  # as in containers: what two processes print may mix
        **extra,
    }


def run_script(
    script: str, num_processes: int, folder: Path, settings: dict[str, Any], *, timeout_s: int = 300
) -> list[dict[str, Any]]:
    """Start a script of this folder as a user does; return what its processes reported, by rank.

    The script gets the number of processes, a folder and a JSON file of settings; each of its
    processes writes `<rank>.json` into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, default=str))
    command = [sys.executable, str(HERE / script), str(num_processes), str(folder)]
    said = folder / "output.txt"  # a pipe would stay open as long as any process of the world
    with said.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    try:
        code: int | str = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        code = f"none within {timeout_s} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert code == 0, f"exit code {code}: {said.read_text()[-4000:]}"
    return _reports(folder, num_processes)


def run_forked(
    module: str, num_processes: int, folder: Path, settings: dict[str, Any], *, timeout_s: int = 300
) -> list[dict[str, Any]]:
    """The same for `main` of a module of this folder, in processes that have imported all of it.

    They stand in the environment in which torchrun would have started them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, default=str))
    port = free_port()
    processes = [
        fork(_run_main, module, rank, num_processes, port, folder) for rank in range(num_processes)
    ]
    until = time.monotonic() + timeout_s
    try:
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    said = [path.read_text()[-3000:] for path in sorted(folder.glob("output-*.txt"))]
    assert not any(code != 0 for code in codes), f"exit codes {codes}: {said}"
    return _reports(folder, num_processes)


def fork(call: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process from a server that has imported what ranks need, and so needs no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed.preloaded"])
    process = context.Process(target=call, args=arguments, daemon=True)
    with mock.patch.dict(os.environ, environment()):  # for the server, if this starts it
        process.start()
    return process


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run_main(module: str, rank: int, size: int, port: int, folder: Path) -> None:
    output = os.open(folder / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="none")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0")
    os.environ.update(WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    importlib.import_module(f"distributed.{module}").main(size, folder)


def _reports(folder: Path, num_processes: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]
