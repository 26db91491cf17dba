import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.output.video import GeneratedVideo
from tests.batch.batches import check_folder, die, make_entry, make_video, write_batch

ENTRIES = {index: make_entry(index) for index in range(3)}


@pytest.fixture
def folder(tmp_path):
    folder = BatchFolder(tmp_path / "videos")
    folder.open(ENTRIES)
    yield folder
    folder.close()


def test_a_batch_is_written_once_and_found_again(tmp_path):
    assert write_batch(tmp_path / "videos", 6) == 6
    check_folder(tmp_path / "videos", 6)
    assert write_batch(tmp_path / "videos", 8) == 2
    check_folder(tmp_path / "videos", 8)


def test_a_video_that_was_removed_or_changed_counts_as_not_made(tmp_path):
    path = tmp_path / "videos"
    write_batch(path, 3)
    first, second, _ = sorted(path.glob("*.mp4"))
    first.unlink()
    second.write_bytes(b"changed")
    assert write_batch(path, 3) == 2
    assert second.read_bytes() == b"changed", "what the user put there stays"


class Killed(BaseException):
    """Stands for the death of the process."""


def be_killed(*_, **__):
    raise Killed


@pytest.mark.parametrize(
    ("moment", "remade"),
    [
        ("fastvideo_lightning.output.video._encode_mp4", 3),
        ("fastvideo_lightning.batch.session.Session.write", 3),
        ("fastvideo_lightning.batch.session.Session.publish", 2),
        ("fastvideo_lightning.batch.folder.link", 2),
        ("fastvideo_lightning.batch.folder.sync_folder", 2),
        ("fastvideo_lightning.batch.manifest.Manifest.replace", 2),
    ],
)
def test_killed_at_each_step_of_a_write_a_video_is_not_lost_and_not_made_twice(
    tmp_path, monkeypatch, moment, remade
):
    path = tmp_path / "videos"
    folder = BatchFolder(path)
    folder.open(ENTRIES)
    assert folder.claim(0)
    with monkeypatch.context() as patched:
        patched.setattr(moment, be_killed)
        with pytest.raises(Killed):
            folder.keep(make_video(0), make_entry(0), 0)
    die(folder)
    assert write_batch(path, 3) == remade
    check_folder(path, 3)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.batch.batches import check_folder, write_batch
write_batch(Path(sys.argv[1]) / "first", 8)  # imports what is imported late
started = time.perf_counter()
if not (child := os.fork()):
    write_batch(Path(sys.argv[1]) / "timed", 8)
    os._exit(0)
os.waitpid(child, 0)
takes_s = time.perf_counter() - started
random.seed(int(sys.argv[2]))
for moment in range(20):
    path = Path(sys.argv[1]) / str(moment)
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        write_batch(path, 8, tell=lambda video: os.write(tell, f"{{video}}\\n".encode()))
        os._exit(0)
    os.close(tell)
    time.sleep(random.uniform(0, takes_s))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    finished = os.fdopen(told).read().split()
    sizes = {{name: os.stat(name).st_size for name in finished}}
    for video in path.glob("*.mp4"):
        assert video.stat().st_size, "an empty file"
    again = []
    made = write_batch(path, 8, tell=lambda video: again.append(str(video)))
    assert made <= 8 - len(finished), "made twice"
    assert {{*finished, *again}} == set(map(str, path.glob("*.mp4"))), "never told of"
    assert len(finished) + len(again) <= 9, "told of again, and not the last alone"
    assert sizes == {{name: os.stat(name).st_size for name in finished}}, "lost"
    check_folder(path, 8)
    print(os.WIFSIGNALED(status), made)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks")
def test_killed_at_20_random_moments_every_video_is_whole_none_lost_and_none_twice(tmp_path):
    code = KILLED.format(root=str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, "3"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == 20
    in_the_middle = {line for line in outcomes if line.startswith("True")}
    assert len(in_the_middle) > 3, "the moments missed the writing"


def test_a_video_that_a_killed_run_may_not_have_told_of_is_told_of_by_the_next(tmp_path):
    path = tmp_path / "videos"
    killed = BatchFolder(path)
    killed.open(ENTRIES)
    told, last = (killed.keep(make_video(index), make_entry(index), index) for index in range(2))
    die(killed)
    again = BatchFolder(path)
    again.open(ENTRIES)
    assert again.recovered == [last]
    assert told.exists()
    again.close()
    ended = BatchFolder(path)
    ended.open(ENTRIES)
    assert ended.recovered == []


def test_what_somebody_else_keeps_in_a_folder_of_ours_is_in_nobodys_way(tmp_path):
    theirs = tmp_path / ".batch" / "their.s" / "file"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert write_batch(tmp_path, 1) == 1
    assert theirs.exists()


def test_pictures_are_kept_as_png(tmp_path):
    folder = BatchFolder(tmp_path, suffix=".png")
    folder.open(ENTRIES)
    frames = np.full((1, 16, 16, 3), 90, np.uint8)
    path = folder.keep(GeneratedVideo(frames, "a picture", 7, 8), make_entry(0), 0)
    folder.close()
    assert path == tmp_path / "video_0.png"
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), frames[0])
    again = BatchFolder(tmp_path, suffix=".png")
    assert list(again.open(ENTRIES)) == [0]
    again.close()


def test_a_name_that_is_taken_is_left_alone(folder, tmp_path):
    outside = tmp_path / "outside.mp4"
    (folder.path / "video_0.mp4").write_bytes(b"mine")
    (folder.path / "video_0_1.mp4").symlink_to(outside)  # to nothing as yet
    assert folder.keep(make_video(0), make_entry(0), 0) == folder.path / "video_0_2.mp4"
    assert (folder.path / "video_0.mp4").read_bytes() == b"mine"
    assert not outside.exists()


def test_a_name_that_is_taken_at_the_last_moment_is_left_alone(folder, monkeypatch):
    link = os.link

    def overtaken(part, path):
        if path.name == "video_0.mp4":
            path.write_bytes(b"theirs")
        link(part, path)

    monkeypatch.setattr(os, "link", overtaken)
    assert folder.keep(make_video(0), make_entry(0), 0).name == "video_0_1.mp4"
    assert (folder.path / "video_0.mp4").read_bytes() == b"theirs"
    folder.close()
    assert folder.open(ENTRIES)[0].file == "video_0_1.mp4"


def test_a_file_system_without_hard_links_gets_its_videos_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_batch(tmp_path / "videos", 5)
    check_folder(tmp_path / "videos", 5)


@pytest.mark.parametrize("name", [".batch", "manifest.jsonl"])
def test_a_symlink_where_the_folder_keeps_its_own_files_is_refused(tmp_path, name):
    outside, path = tmp_path / "outside", tmp_path / "videos"
    for place in (outside, path):
        place.mkdir()
    (outside / "precious").write_text("mine")
    (path / name).symlink_to(outside)
    with pytest.raises(StorageError, match="is a symlink"):
        BatchFolder(path)
    assert [left.name for left in outside.iterdir()] == ["precious"]


@pytest.mark.parametrize("make", [Path.mkdir, getattr(os, "mkfifo", Path.mkdir)])
def test_what_is_no_file_in_the_manifests_place_is_told_by_its_name(tmp_path, make):
    make(tmp_path / "manifest.jsonl")
    with pytest.raises(OSError, match=r"manifest.jsonl' is no file.*Move it away"):
        BatchFolder(tmp_path)


def test_a_manifest_that_may_not_be_written_is_told_before_a_video_is_made(tmp_path, monkeypatch):
    write_batch(tmp_path, 1)
    really_open = os.open

    def refuse(path, flags, *mode):  # as for anybody but root
        if Path(path).name == "manifest.jsonl" and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"manifest.jsonl' cannot be read and written"):
        BatchFolder(tmp_path)


def test_an_entry_that_points_out_of_the_folder_is_not_followed(tmp_path):
    path = tmp_path / "videos"
    write_batch(path, 1)
    (video,) = path.glob("*.mp4")
    video.rename(tmp_path / "outside.mp4")
    manifest = path / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace(video.name, "../outside.mp4"))
    assert write_batch(path, 1) == 1


def test_a_folder_that_is_removed_meanwhile_is_told(folder):
    shutil.rmtree(folder.path)
    with pytest.raises(StorageError, match="was removed while videos were being made"):
        folder.keep(make_video(0), make_entry(0), 0)
    assert not folder.path.exists()


def test_a_disk_that_fills_up_leaves_no_half_file_and_says_what_to_do(folder, monkeypatch):
    def fill_up(video, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(GeneratedVideo, "save", fill_up)
        with pytest.raises(StorageError, match="No space left on device. Free some space"):
            folder.keep(make_video(0), make_entry(0), 0)
    assert not list(folder.path.rglob("*.mp4")), "half a file takes the space that is to be freed"
    folder.close()
    assert write_batch(folder.path, 2) == 2
    check_folder(folder.path, 2)
