import threading

import av
import lightning as L
import numpy as np
import pytest

from fastvideo_lightning.callbacks import VideoWriter
from fastvideo_lightning.output import video as output
from fastvideo_lightning.output.video import GeneratedVideo


def make_video(prompt="a red circle"):
    return GeneratedVideo(np.full((3, 16, 16, 3), 200, np.uint8), prompt=prompt, seed=1, fps=8)


@pytest.fixture
def fabric(tmp_path):
    return L.Fabric(accelerator="cpu", devices=1, callbacks=[VideoWriter(tmp_path / "videos")])


def announce(fabric, name, **moment):
    fabric.call(name, fabric=fabric, module=None, **moment)


def start(fabric, prompt="a red circle"):
    announce(fabric, "on_predict_batch_start", batch={"prompt": prompt}, batch_idx=0)


def end(fabric, video, *, written=True):
    batch = {"prompt": video.prompt}
    announce(fabric, "on_predict_batch_end", outputs=video, batch=batch, batch_idx=0)
    if written:
        announce(fabric, "on_predict_epoch_end")


def files(tmp_path):
    folder = tmp_path / "videos"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_finished_video_is_a_playable_file_and_knows_its_path(fabric, tmp_path):
    announce(fabric, "on_predict_start", num_batches=1)
    start(fabric)
    video = make_video()
    end(fabric, video)
    assert video.video_path == tmp_path / "videos" / "a_red_circle.mp4"
    with av.open(str(video.video_path)) as container:
        assert len(list(container.decode(video=0))) == 3


def test_nothing_is_there_of_a_video_before_its_file_is_whole(fabric, tmp_path, monkeypatch):
    seen = []
    write = output._encode_mp4

    def look(frames, path, *others):
        write(frames, path, *others)
        seen.extend(left for left in files(tmp_path) if not left.startswith("."))

    monkeypatch.setattr(output, "_encode_mp4", look)
    announce(fabric, "on_predict_start", num_batches=1)
    start(fabric)
    assert files(tmp_path) == []
    end(fabric, make_video())
    assert (seen, files(tmp_path)) == ([], ["a_red_circle.mp4"])


def test_the_same_prompt_twice_gives_two_files(fabric, tmp_path):
    for _ in range(2):
        start(fabric)
        end(fabric, make_video())
    assert files(tmp_path) == ["a_red_circle.mp4", "a_red_circle_1.mp4"]


@pytest.mark.parametrize("moment", ["on_exception", "teardown"])
def test_a_run_that_breaks_leaves_no_file(fabric, tmp_path, moment):
    start(fabric)
    announce(fabric, moment, exception=RuntimeError())
    announce(fabric, moment, exception=RuntimeError())
    assert files(tmp_path) == []


def test_a_finished_video_survives_an_exception_in_the_next_one(fabric, tmp_path):
    start(fabric, "first")
    end(fabric, make_video("first"))
    start(fabric, "second")
    announce(fabric, "on_exception", exception=RuntimeError())
    announce(fabric, "teardown")
    assert files(tmp_path) == ["first.mp4"]


def test_after_an_exception_the_same_writer_writes_the_next_video(fabric, tmp_path):
    start(fabric)
    announce(fabric, "on_exception", exception=RuntimeError())
    start(fabric)
    end(fabric, make_video())
    assert files(tmp_path) == ["a_red_circle.mp4"]


def test_a_failed_write_leaves_no_file(fabric, tmp_path, monkeypatch):
    start(fabric)
    monkeypatch.setattr("fastvideo_lightning.output.video._encode_mp4", fail)
    with pytest.raises(OSError, match="disk full"):
        end(fabric, make_video())
    announce(fabric, "on_exception", exception=OSError())
    assert files(tmp_path) == []


def fail(*_):
    raise OSError("disk full")


def test_an_unwritable_folder_is_an_error_at_the_start_of_the_run(tmp_path):
    (tmp_path / "taken").touch()
    fabric = L.Fabric(accelerator="cpu", devices=1, callbacks=[VideoWriter(tmp_path / "taken")])
    with pytest.raises(NotADirectoryError, match="taken"):
        announce(fabric, "on_predict_start", num_batches=1)


class Slow:
    """Holds every write until it is told to go on."""

    def __init__(self, monkeypatch):
        self.going_on, self.written = threading.Event(), []
        save = GeneratedVideo.save

        def slowly(video, path):
            assert self.going_on.wait(10)
            self.written.append(video.prompt)
            return save(video, path)

        monkeypatch.setattr(GeneratedVideo, "save", slowly)


def test_a_video_is_written_while_the_next_one_is_made(fabric, tmp_path, monkeypatch):
    slow = Slow(monkeypatch)
    first, second = make_video("first"), make_video("second")
    start(fabric, "first")
    end(fabric, first, written=False)
    start(fabric, "second")  # and the writing of the first has not ended
    assert (slow.written, first.video_path) == ([], None)
    slow.going_on.set()
    end(fabric, second, written=False)
    assert first.video_path == tmp_path / "videos" / "first.mp4"
    announce(fabric, "on_predict_epoch_end")
    assert slow.written == ["first", "second"]
    assert second.video_path.stat().st_size > 0


@pytest.mark.parametrize("moment", ["on_predict_epoch_end", "on_exception", "teardown"])
def test_what_was_made_is_written_however_the_run_ends(fabric, monkeypatch, moment):
    slow = Slow(monkeypatch)
    video = make_video()
    start(fabric)
    end(fabric, video, written=False)
    slow.going_on.set()
    announce(fabric, moment, exception=RuntimeError())
    assert video.video_path.stat().st_size > 0


def test_a_failed_write_is_raised_where_the_next_video_ends(fabric, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvideo_lightning.output.video._encode_mp4", fail)
    start(fabric, "first")
    end(fabric, make_video("first"), written=False)
    start(fabric, "second")
    with pytest.raises(OSError, match="disk full"):
        end(fabric, make_video("second"))
    announce(fabric, "on_exception", exception=OSError())
    assert files(tmp_path) == []


def test_a_write_that_fails_while_the_run_breaks_is_told_beside(fabric, monkeypatch, caplog):
    monkeypatch.setattr("fastvideo_lightning.output.video._encode_mp4", fail)
    start(fabric)
    end(fabric, make_video(), written=False)
    announce(fabric, "on_exception", exception=RuntimeError())
    assert "disk full" in caplog.text


def test_a_prompt_that_has_a_name_gives_it_to_the_file(fabric, tmp_path):
    announce(fabric, "on_predict_start", num_batches=1)
    video, batch = make_video(), {"prompt": "a red circle", "name": "shot_1024"}
    announce(fabric, "on_predict_batch_end", outputs=video, batch=batch, batch_idx=0)
    announce(fabric, "on_predict_epoch_end")
    assert files(tmp_path) == ["shot_1024.mp4"]
