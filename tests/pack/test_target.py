"""The folder that a pack is written to."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from fastvideo_lightning import CheckpointError
from fastvideo_lightning.cli.errors import in_two_lines
from fastvideo_lightning.pack import files, pack, plan_packing

NOBODY = 65534
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
files.sync = kill
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


def test_of_two_packs_into_one_folder_the_second_is_told_of_the_first(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    model, out = checkpoint("t2v"), tmp_path / "out"
    first, second = plan_packing(model, out), plan_packing(model, out)
    told = []

    def meanwhile(path: Path, size_bytes: int) -> None:
        if not told:
            script = "import sys; from fastvideo_lightning.cli.app import main; main()"
            words = [sys.executable, "-c", script, "pack", str(model), str(out), "--dtype", "fp16"]
            told.append(subprocess.run(words, cwd=ROOT, capture_output=True, text=True))
            with pytest.raises(RuntimeError, match="Another `fastvideo-lightning pack` is writing"):
                second.write()

    first.write(meanwhile)
    assert told[0].returncode == 1
    assert told[0].stderr.splitlines() == [
        f"Error: Another `fastvideo-lightning pack` is writing to {out}.",
        "Wait for it to end, or pass another folder.",
    ]
    assert (out / "model_index.json").is_file()
    assert not list(out.rglob(".*")), "the lock is gone, and so is what is unfinished"
    second.write()
    with pytest.raises(FileExistsError, match="holds a pack of"):
        pack(model, out, dtype="fp16")


def test_a_folder_that_another_pack_filled_since_it_was_planned_is_left_alone(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    planned = plan_packing(checkpoint("t2v"), tmp_path / "out", dtype="fp16")
    record = pack(checkpoint("t2v"), tmp_path / "out") / "packing.json"
    before = record.read_bytes()
    with pytest.raises(FileExistsError, match="holds a pack of .* with dtype auto"):
        planned.write()
    assert record.read_bytes() == before
    assert not (tmp_path / "out" / ".packing.lock").exists()


@needs_sigkill
def test_the_lock_of_a_killed_run_holds_nobody(checkpoint: FindCheckpoint, tmp_path: Path) -> None:
    model, out = checkpoint("t2v"), tmp_path / "out"
    kill_while_writing("model_index.json", model, out)
    assert (out / ".packing.lock").is_file()
    pack(model, out)
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("content", ["", '{"model": "t2v"', "[]"])
def test_of_a_damaged_record_the_folder_is_named_and_not_the_checkpoint(
    checkpoint: FindCheckpoint, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "packing.json").write_text(content)
    with pytest.raises(FileExistsError) as raised:
        pack(checkpoint("t2v"), out)
    what, to_type = in_two_lines(str(raised.value), "")
    assert what.startswith(f"{out / 'packing.json'} is damaged (")
    assert to_type == f"Delete {out}, or pass another folder."
    assert (out / "packing.json").read_text() == content


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """Be no root for the test; return a folder that is open to whoever that is."""
    if os.name != "posix":
        pytest.skip("takes rights away, which takes POSIX")
    is_root = os.geteuid() == 0
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)
        if is_root:
            os.seteuid(0)


def become(user_id: int) -> None:
    if os.geteuid() == 0:
        os.seteuid(user_id)


@pytest.mark.parametrize("name", ["closed", "closed/out"])
def test_a_folder_that_one_may_not_write_to_is_named_before_the_model_is_read(
    checkpoint: FindCheckpoint, plain_user: Path, name: str
) -> None:
    model = Path(shutil.copytree(checkpoint("t2v"), plain_user / "model"))
    (plain_user / "closed").mkdir()
    (plain_user / "closed").chmod(0o555)
    become(NOBODY)
    with pytest.raises(PermissionError) as raised:
        plan_packing(model, plain_user / name)
    assert in_two_lines(str(raised.value), "") == [
        f"You may not write to {plain_user / 'closed'}.",
        "Pass a folder that you may write to.",
    ]


@pytest.mark.parametrize(
    "name", ["", "vae", "tokenizer", "model_index.json", "vae/config.json", "README.md"]
)
def test_what_one_may_not_read_of_a_model_is_named_and_what_to_type(
    checkpoint: FindCheckpoint, plain_user: Path, name: str
) -> None:
    model = Path(shutil.copytree(checkpoint("t2v"), plain_user / "model"))
    (model / "README.md").touch()
    for path in model.rglob("*"):
        path.chmod(0o755)  # safetensors gives its files to nobody else
    (model / name).chmod(0)
    become(NOBODY)
    with pytest.raises(CheckpointError) as raised:
        plan_packing(model, plain_user / "out")
    what, to_type = in_two_lines(str(raised.value), "")
    assert what.startswith(f"You may not read {model / name}")
    assert to_type.startswith(f"Type `chmod -R u+rX {model}` if it is yours, or pass a model")


def test_what_the_system_refuses_while_writing_is_told_of_the_folder(
    checkpoint: FindCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = plan_packing(checkpoint("t2v"), tmp_path / "out")
    for code, to_type in ((errno.EROFS, "Pass another"), (errno.ENOSPC, "Free some space")):

        def refuse(file, code=code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(files, "sync", refuse)
        with pytest.raises(OSError, match=f"^Cannot write .*out: .*{to_type}") as raised:
            packing.write()
        assert raised.value.errno == code
        assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_locked_is_named_with_what_to_do(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="cannot be locked.*pass a folder on another disk") as told:
        pack("tiny-shapes", tmp_path / "packed")
    assert str(tmp_path / "packed") in str(told.value)
