import pytest

from fastvideo_lightning.batch.folder import BatchFolder
from fastvideo_lightning.batch.manifest import FAILED
from fastvideo_lightning.batch.session import About
from fastvideo_lightning.batch.status import read_status
from fastvideo_lightning.cli.app import run
from tests.batch.batches import make_entry, make_video

ENTRIES = {index: make_entry(index) for index in range(4)}


def test_a_status_says_what_is_done_failed_and_in_work_by_whom(tmp_path, capsys):
    folder = BatchFolder(tmp_path)
    folder.open(ENTRIES)
    folder.keep(make_video(0), ENTRIES[0], 0)
    assert folder.claim(1)
    folder.fail(type(ENTRIES[1])("video 1", 1, FAILED, error="no"), 1)
    assert folder.claim(2)
    status = read_status(tmp_path)
    assert (status.num_done, status.num_failed, status.num_left) == (1, 1, 2)
    (worker,) = status.workers
    assert (worker.num_done, worker.now) == (1, "video_2.mp4")
    assert worker.name == About.of_this_process().name
    before = sorted(tmp_path.rglob("*"))
    assert run(["batch-status", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 done, 1 failed, 2 to be made"
    assert said[1].endswith("1 done, now video_2.mp4")
    assert sorted(tmp_path.rglob("*")) == before
    folder.close()
    assert run(["batch-status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 done, 1 failed, nobody is at work\n"


def test_a_folder_without_a_batch_is_refused_with_what_to_pass(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no manifest.jsonl"):
        read_status(tmp_path)
    assert run(["batch-status", str(tmp_path)]) == 2
    assert "--output-path" in capsys.readouterr().err
