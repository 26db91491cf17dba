"""The folder that a pack is written to."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastvideo_lightning.pack import pack, plan_packing

ROOT = Path(__file__).parent.parent.parent
FindCheckpoint = Callable[[str], Path]

KILLED = """
import os, signal, sys
from pathlib import Path
from fastvideo_lightning.pack import files, plan_packing

def kill(file):
    if Path(file.name).name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

packing = plan_packing(sys.argv[1], sys.argv[2])
files._sync = kill
packing.write()
"""

needs_sigkill = pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL, which is POSIX's")


def kill_while_writing(name: str, model: Path, out: Path) -> None:
    """Pack in another process that is killed when it has written a file but not named it."""
    words = [sys.executable, "-c", KILLED, str(model), str(out), f".{name}.partial"]
    assert subprocess.run(words, check=False, cwd=ROOT).returncode == -signal.SIGKILL


@needs_sigkill
def test_a_run_that_was_killed_while_it_wrote_its_record_goes_on(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    model, out = checkpoint("t2v"), tmp_path / "out"
    kill_while_writing("packing.json", model, out)
    assert (out / ".packing.json.partial").is_file()
    assert not (out / "packing.json").exists()
    assert (pack(model, out) / "model_index.json").is_file()
    assert not list(out.rglob(".*"))


def test_what_lies_beside_such_a_rest_is_still_left_alone(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".packing.json.partial").touch()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="holds what packing did not write"):
        pack(checkpoint("t2v"), tmp_path / "out")


@needs_sigkill
def test_what_a_killed_run_left_unfinished_counts_as_free(
    checkpoint: FindCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial is cut to nothing before its file is written anew, so its bytes are to be had."""
    model, out, name = checkpoint("t2v"), tmp_path / "out", "diffusion_pytorch_model.safetensors"
    kill_while_writing(name, model, out)
    (partial,) = out.rglob(f".{name}.partial")
    size_bytes, packing = partial.stat().st_size, plan_packing(model, out)
    missing_bytes = packing.size_bytes + sum(map(len, packing.texts.values()))
    done = [path for path in out.rglob("*.safetensors") if not path.name.startswith(".")]
    missing_bytes -= sum(path.stat().st_size for path in done)
    assert size_bytes > 0

    def leave(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    leave(missing_bytes - size_bytes - 1)
    with pytest.raises(OSError, match="No room for"):
        packing.check_space()
    leave(missing_bytes - size_bytes)
    packing.check_space()
