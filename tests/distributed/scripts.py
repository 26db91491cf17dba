"""Starts a script in several processes, as a user does, and reads what each of them wrote."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

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
    """Run a script of this folder and return what its processes reported, by rank.

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
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        code = f"none within {timeout_s} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert code == 0, f"exit code {code}: {said.read_text()[-4000:]}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]
