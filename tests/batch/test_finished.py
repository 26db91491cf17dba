"""A batch that is there already is told so by its note; nothing else passes for one."""

import json
import os

import pytest

from fastvideo_lightning.batch.finished import FINISHED, Finished
from fastvideo_lightning.batch.manifest import MANIFEST
from tests.batch.batches import write_batch

ASKED = {"prompts": [{"prompt": "a"}], "flags": {"vae_tiling": False}}


@pytest.fixture
def model(tmp_path):
    """A folder that looks like a checkpoint."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def out(tmp_path):
    """A folder with three videos of a batch."""
    folder = tmp_path / "out"
    folder.mkdir()
    write_batch(folder, 3)
    return folder


def note(out, model, **other):
    return Finished(out, {**ASKED, **other}, model=str(model))


def test_the_same_is_there_once_it_was_noted(out, model):
    assert not note(out, model).is_there()
    note(out, model).keep()
    assert note(out, model).is_there()
    assert {path.suffix for path in out.iterdir()} == {".mp4", ".jsonl", ".json"}


def cut(out, model):
    path = next(out.glob("*.mp4"))
    path.write_bytes(path.read_bytes()[:-1])


CHANGES = {
    "a video is gone": lambda out, model: next(out.glob("*.mp4")).unlink(),
    "a video is cut": cut,
    "the manifest is gone": lambda out, model: (out / MANIFEST).unlink(),
    "the model is another": lambda out, model: (model / "weights").write_text("w"),
    "the note is torn": lambda out, model: (out / FINISHED).write_text('{"asked'),
    "the note is no note": lambda out, model: (out / FINISHED).write_text("[[]]"),
    "the note names no file": lambda out, model: (out / FINISHED).write_text(
        json.dumps({**json.loads((out / FINISHED).read_text()), "files": {}})
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_has_changed_since_is_looked_at_again(out, model, change):
    note(out, model).keep()
    change(out, model)
    assert not note(out, model).is_there()


@pytest.mark.parametrize(
    "other", [{"prompts": [{"prompt": "b"}]}, {"flags": {"vae_tiling": True}}, {"more": 1}]
)
def test_something_else_that_is_asked_for_is_looked_at(out, model, other):
    note(out, model).keep()
    assert not note(out, model, **other).is_there()


def test_other_devices_may_mean_other_dtypes(out, model, monkeypatch):
    note(out, model).keep()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert not note(out, model).is_there()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_the_note_is_not_waited_for(out, model):
    os.mkfifo(out / FINISHED)
    assert not note(out, model).is_there()


def test_a_note_is_neither_read_nor_written_through_a_symlink(out, model, tmp_path):
    note(out, model).keep()
    elsewhere = (out / FINISHED).rename(tmp_path / "elsewhere")
    before = elsewhere.read_bytes()
    (out / FINISHED).symlink_to(elsewhere)
    assert not note(out, model).is_there()
    elsewhere.write_bytes(b"theirs")
    note(out, model).keep()
    assert elsewhere.read_bytes() == b"theirs"
    assert (out / FINISHED).read_bytes() == before


def test_a_damaged_line_of_the_manifest_is_left_to_the_batch_to_tell_of(out, model, caplog):
    with (out / MANIFEST).open("a") as manifest:
        manifest.write("nonsense\n")
    note(out, model).keep()
    assert note(out, model).is_there()
    assert not caplog.records


def test_a_manifest_that_cannot_be_read_is_looked_at_by_the_batch(out, model):
    note(out, model).keep()
    (out / MANIFEST).rename(out / "other.jsonl")
    (out / MANIFEST).mkdir()
    assert not note(out, model).is_there()


def test_a_folder_that_takes_no_note_does_no_harm(out, model):
    (out / FINISHED).mkdir()
    (out / FINISHED / "theirs").touch()
    note(out, model).keep()
    assert not note(out, model).is_there()
    assert not list(out.glob(f"{FINISHED}.*"))


def test_of_a_hub_id_that_is_not_here_nothing_is_noted(out, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    note(out, "nobody/nothing").keep()
    assert not (out / FINISHED).exists()
    assert not note(out, "nobody/nothing").is_there()
