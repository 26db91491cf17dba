"""A batch that nobody reads to its end lets go of its folder and of its generator."""

import errno
import json

import pytest
from support.checkpoints import PROMPT, SIZE

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.batch.folder import StorageError

PROMPTS = [PROMPT, "a blue square", "a green circle", "a red square"]


@pytest.fixture
def generator(checkpoint):
    with VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu") as generator:
        yield generator


def test_a_loop_that_is_left_lets_go_of_the_generator_and_of_the_folder(generator, tmp_path):
    for _ in generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE):
        break
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".jsonl"}
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    assert len(list(batch)) == batch.num_made == 4 - batch.num_skipped < 4


def test_an_error_in_the_callers_loop_lets_go_of_both_too(generator, tmp_path):
    def read() -> None:
        for video in generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE):
            raise KeyError(video.prompt)

    with pytest.raises(KeyError):
        read()
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".jsonl"}
    assert generator.generate_video(PROMPT, save_video=False, **SIZE).frames.any()


def test_a_batch_that_was_never_begun_leaves_its_folder_empty(generator, tmp_path):
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    assert any(tmp_path.iterdir())
    del batch
    assert not any(tmp_path.iterdir())


def test_a_generator_that_is_closed_in_the_middle_of_a_batch_ends_it_with_an_error(
    generator, tmp_path
):
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    next(batch)
    generator.close()
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["done", "done"], "none half written"
    with pytest.raises(RuntimeError, match="This generator is closed"):
        list(batch)
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".jsonl"}


def test_a_folder_that_may_no_longer_be_written_to_ends_the_batch_with_that_reason(
    generator, tmp_path, monkeypatch
):
    batch = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    next(batch)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as forbidden:
        for name in ("link", "rmdir", "unlink"):
            forbidden.setattr(f"os.{name}", refuse)
        with pytest.raises(StorageError, match="could not be written into .*: Permission denied"):
            list(batch)
    again = generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE)
    assert len(list(again)) == again.total - again.num_skipped < 4
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".jsonl"}
