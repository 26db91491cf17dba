import numpy as np

from fastvideo_lightning.batch.manifest import DONE, Entry
from fastvideo_lightning.cli.app import run
from fastvideo_lightning.output.video import GeneratedVideo


def test_it_prints_the_page_and_counts_the_videos(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night").mkdir()
    video = GeneratedVideo(np.zeros((1, 16, 16, 3), np.uint8), "a", 1, 8)
    video.save(tmp_path / "night" / "a.mp4")
    line = Entry("a", 1, DONE, file="a.mp4").to_line()
    (tmp_path / "night" / "manifest.jsonl").write_bytes(line + b"\n")
    assert run(["gallery", "night/"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "night/gallery.html\n"
    assert captured.err == "1 video\n"


def test_a_folder_of_no_batch_is_refused_with_what_to_pass(tmp_path, capsys):
    assert run(["gallery", str(tmp_path)]) == 2
    assert "Pass the folder of a batch" in capsys.readouterr().err
