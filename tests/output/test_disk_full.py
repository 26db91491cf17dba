"""A disk that fills up: a real one of a few hundred kB, where the system lets us mount it."""

import contextlib
import errno
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.recorders import record_calls

import fastvideo_lightning
from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.batch.manifest import DONE, Entry, Manifest
from fastvideo_lightning.batch.session import Session
from fastvideo_lightning.cli.app import run
from fastvideo_lightning.output.video import GeneratedVideo
from fastvideo_lightning.pack.packing import Packing

SIZE_BYTES = 512 * 1024


@pytest.fixture
def disk(tmp_path):
    """The root of a file system of half a megabyte."""
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(root)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounts a small tmpfs, which takes root on Linux")
    yield root
    subprocess.run(["umount", str(root)], check=True)


def fill(disk, *, leave=0):
    """Take what is free on the disk, but for so many bytes; return the file that holds it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(ballast.stat().st_size - leave)
    return ballast


def noise(prompt="a", *, size=96):
    """A video that hardly compresses: about as many bytes as pixels."""
    frames = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), np.uint8)
    return GeneratedVideo(frames, prompt, seed=7, fps=8)


def entry(prompt="a"):
    return Entry(prompt, 7, DONE)


def test_a_video_that_does_not_fit_leaves_nothing(disk):
    ballast = fill(disk, leave=40 * 1024)
    with pytest.raises(
        OSError, match=r"no space left to write the video into .*Free some space"
    ) as full:
        noise().save(disk / "a.mp4")
    assert full.value.errno == errno.ENOSPC
    assert list(disk.iterdir()) == [ballast]
    ballast.unlink()
    assert noise().save(disk / "a.mp4").stat().st_size > 40 * 1024


def test_a_batch_says_what_to_do_and_goes_on_once_there_is_space(disk):
    folder = BatchFolder(disk / "videos")
    entries = {0: entry("first"), 1: entry("second")}
    folder.open(entries)
    first = folder.keep(noise("first", size=32), entries[0], 0)
    ballast = fill(disk, leave=40 * 1024)
    with pytest.raises(StorageError, match="Free some space. Run the same again"):
        folder.keep(noise("second"), entries[1], 1)
    assert list((disk / "videos").glob("*.mp4")) == [first]
    assert len([*(disk / "videos" / ".batch").rglob("*.mp4")]) == 0
    ballast.unlink()
    folder.keep(noise("second"), entries[1], 1)
    folder.close()
    assert len(BatchFolder(disk / "videos").open(entries)) == 2


def test_a_record_that_does_not_fit_leaves_no_video_and_it_is_made_again(disk, monkeypatch):
    folder = BatchFolder(disk / "videos")
    long = {0: entry("a" * 5000)}
    folder.open(long)
    really_write = Session.write

    def without_space(session, name, content):
        if not name.endswith(".record"):
            return really_write(session, name, content)
        ballast = fill(disk)
        try:
            return really_write(session, name, content)
        finally:
            ballast.unlink()

    with monkeypatch.context() as full:
        full.setattr(Session, "write", without_space)
        with pytest.raises(StorageError, match="No space left"):
            folder.keep(noise(size=32), long[0], 0)
    folder.close()
    again = BatchFolder(disk / "videos")
    assert again.open(long) == {}
    again.keep(noise(size=32), long[0], 0)
    again.close()
    assert len(list((disk / "videos").glob("*.mp4"))) == 1


def test_a_manifest_that_does_not_fit_costs_no_video_and_is_written_by_the_next_run(
    disk, monkeypatch
):
    folder = BatchFolder(disk / "videos")
    folder.open({0: entry()})
    ballasts = []

    def fill_up(*_):
        ballasts.append(fill(disk))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Manifest, "replace", fill_up)
        with pytest.raises(StorageError, match="No space left"):
            folder.keep(noise(size=32), entry(), 0)
    for ballast in ballasts:
        ballast.unlink(missing_ok=True)
    folder.close()
    again = BatchFolder(disk / "videos")
    assert list(again.open({0: entry()})) == [0]
    again.close()
    assert [line.file for line in Manifest(disk / "videos").read()] == ["a.mp4"]


def test_a_report_that_does_not_fit_is_told_of_and_costs_no_video(disk, tmp_path):
    fill(disk)
    asked = ["generate", "--prompts", "-", "--output-path", tmp_path / "videos"]
    sizes = ["--num-inference-steps", "1", "--report", disk / "r.html"]
    command = [sys.executable, "-m", "fastvideo_lightning", *asked, *sizes]
    ended = subprocess.run(command, input="a red circle\n", capture_output=True, text=True)
    assert ended.returncode == 0
    assert ended.stdout.splitlines() == [str(tmp_path / "videos" / "a_red_circle.mp4")]
    assert "r.html' cannot be written: No space left on device." in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("1 of 1 video is in")
    assert [left.name for left in disk.iterdir()] == ["ballast"]


def pack(disk):
    return run(["pack", "tiny-shapes", str(disk / "packed")])


def test_packing_is_refused_where_there_is_no_room(disk, capsys):
    assert pack(disk) == 2
    assert "No room for" in capsys.readouterr().err
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_while_packing_leaves_no_checkpoint(disk, capsys, monkeypatch):
    record_calls(monkeypatch)  # and with it, what the command sets for its own process
    monkeypatch.delitem(vars(fastvideo_lightning), "VideoModule", raising=False)
    monkeypatch.setattr(Packing, "check_space", lambda packing: None)  # another program's doing
    assert pack(disk) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "No space left on device" in lines[-2]
    assert lines[-1] == "Free some space and run the same command again."
    packed = disk / "packed"
    assert not (packed / "model_index.json").exists(), "it would pass for a checkpoint"
    assert not [path for path in packed.rglob("*.safetensors") if not path.name.startswith(".")]
