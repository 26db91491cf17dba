"""Many workers on one folder: nothing lost, nothing made twice, nothing torn."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.session import Fenced, Session
from tests.batch.batches import check_folder, die, make_entry, make_video, write_batch

ROOT = Path(__file__).parents[2]
ENTRIES = {index: make_entry(index) for index in range(3)}


def open_folder(path, **options):
    folder = BatchFolder(path, **options)
    folder.open(ENTRIES)
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks")
@pytest.mark.parametrize(
    "num_runs", [1, pytest.param(50, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])]
)
def test_whatever_happens_to_workers_no_video_is_lost_doubled_or_torn(tmp_path, num_runs):
    command = [sys.executable, "-m", "tests.batch.elastic_script", tmp_path, "0", str(num_runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    happened = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(happened) == num_runs
    assert all(run["kill"] and run["stop"] for run in happened)


def test_two_workers_share_a_list_and_each_makes_a_part(tmp_path):
    made = []
    workers = [
        threading.Thread(target=lambda: made.append(write_batch(tmp_path, 16))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(made) == 16
    check_folder(tmp_path, 16)


def test_a_worker_that_is_there_keeps_its_claims_and_one_that_is_gone_loses_them(tmp_path):
    first, second = open_folder(tmp_path), open_folder(tmp_path)
    assert first.claim(0)
    assert not second.claim(0)
    first.close()
    assert second.claim(0)
    second.close()
    assert not list(tmp_path.iterdir())


def test_a_worker_without_a_sign_of_life_is_dead_by_the_observers_clock_alone(tmp_path):
    first, second = open_folder(tmp_path), open_folder(tmp_path, stale_s=0.4)
    assert first.claim(0)
    assert second.wait([0], at_most_s=0.1) == [0]
    first._session._ends.set()  # no more heartbeats: it is on a machine that is gone
    for file in (tmp_path / ".batch").rglob("*"):
        os.utime(file, (4e9, 4e9))  # a clock that is years ahead
    started = time.monotonic()
    assert second.wait([0]) == [0]
    assert second.claim(0)
    assert 0.2 < time.monotonic() - started < 5
    second.close()


def test_a_worker_that_was_taken_for_dead_publishes_nothing_and_goes_on_with_another(tmp_path):
    asleep, other = open_folder(tmp_path), open_folder(tmp_path)
    assert asleep.claim(0)
    die(asleep)
    asleep._is_open = True
    assert other.wait([0]) == [0]
    assert other.claim(0)
    assert asleep.keep(make_video(0), make_entry(0), 0) is None
    assert asleep.claim(1), "it has come back"
    assert other.keep(make_video(0), make_entry(0), 0) == tmp_path / "video_0.mp4"
    assert asleep.keep(make_video(1), make_entry(1), 1) == tmp_path / "video_1.mp4"
    for folder in (asleep, other):
        folder.close()
    check_folder(tmp_path, 2)


def test_who_publishes_a_prompt_second_drops_his_video(tmp_path):
    first, second = open_folder(tmp_path), open_folder(tmp_path)
    assert first.keep(make_video(0), make_entry(0), 0) is not None
    assert second.keep(make_video(0), make_entry(0), 0) is None
    for folder in (first, second):
        folder.close()
    check_folder(tmp_path, 1)


def test_names_are_the_lists_whoever_makes_what(tmp_path):
    entries = {index: make_entry(4 * index) for index in range(3)}  # the same prompt
    folder = BatchFolder(tmp_path)
    folder.open(entries)
    for index in (2, 0, 1):
        folder.keep(make_video(4 * index), entries[index], index)
    folder.close()
    assert [entry.file for entry in folder.manifest.read()] == [
        "video_0.mp4",
        "video_0_1.mp4",
        "video_0_2.mp4",
    ]
    assert [entry.seed for entry in folder.manifest.read()] == [0, 4, 8]


def test_the_last_worker_takes_the_session_away_and_none_before(tmp_path):
    first, second = Session(tmp_path / "own"), Session(tmp_path / "own")
    first.join()
    second.join()
    assert first.worker.partition(".")[0] == second.worker.partition(".")[0]
    first.leave()
    assert second.is_member
    second.leave()
    assert not (tmp_path / "own").exists()
    second.worker = "gone.gone"
    with pytest.raises(Fenced):
        second.write("name", b"")
