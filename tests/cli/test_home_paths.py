"""A leading `~` is the home in every path, also where no shell has read it."""

import json
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from fastvideo_lightning import CheckpointError
from fastvideo_lightning.batch import BatchFolder
from fastvideo_lightning.callbacks import MemoryReport, VideoWriter
from fastvideo_lightning.checkpoint.folder import ASSETS, find_folder
from fastvideo_lightning.cli.config_file import read_config_file
from fastvideo_lightning.cli.options import make_options
from fastvideo_lightning.config import LoraChoice, SamplingParams
from fastvideo_lightning.modules.media import check_media, load_media
from fastvideo_lightning.output.video import GeneratedVideo
from fastvideo_lightning.pack import plan_packing
from fastvideo_lightning.prompts.files import read_prompt_file
from fastvideo_lightning.report import check_report_path

# Options of `generate` that hold a path; `lora` and `model` read theirs themselves.
PATHS = ["prompts", "report", "image_path", "last_image_path", "video_path", "output_path"]
FRAMES = np.zeros((2, 16, 16, 3), np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, and another working folder."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert not list(here.iterdir()), "something was made in the working folder"


@pytest.mark.parametrize("name", PATHS)
def test_an_option_that_is_a_path_reads_it_typed_and_from_a_file(home, name):
    options = {option.name: option for option in make_options()}
    context = click.Context(click.Command("generate"))
    typed = options[name].type.convert("~/a.x", options[name], context)
    config = home / "c.yaml"
    config.write_text(f"{name}: ~/a.x\n")
    assert typed == str(home / "a.x")
    assert read_config_file("~/c.yaml", list(options.values())) == {name: typed}


def test_no_option_whose_name_is_a_path_is_left_out():
    named = {o.name for o in make_options() if o.name.endswith("_path")}
    assert named <= set(PATHS)


def test_pictures_and_videos_are_read_from_home(home):
    Image.new("RGB", (8, 8), "red").save(home / "first.png")
    GeneratedVideo(FRAMES, "a", 1, 8).save(home / "v.mp4")
    for name in ("image_path", "last_image_path", "video_path"):
        assert getattr(SamplingParams(**{name: "~/first.png"}), name) == str(home / "first.png")
        assert getattr(SamplingParams(**{name: Path("~/x.png")}), name) == str(home / "x.png")
    check_media("mask", "~/first.png")
    assert load_media("~/first.png").size == (8, 8)
    assert len(load_media("~/v.mp4")) == 2


def test_prompts_stand_in_a_file_at_home_with_pictures_there(home):
    Image.new("RGB", (8, 8)).save(home / "first.png")
    line = {"prompt": "a", "image_path": "~/first.png"}
    (home / "p.jsonl").write_text(json.dumps(line) + "\n")
    (prompt,) = read_prompt_file("~/p.jsonl")
    assert SamplingParams(image_path=prompt["image_path"]).image_path == str(home / "first.png")


def test_what_is_written_goes_home(home):
    video = GeneratedVideo(FRAMES, "a", 1, 8)
    assert video.save("~/one.mp4") == home / "one.mp4"
    assert video.save_as_prompt("~/out").parent == home / "out"
    assert video.save_frames(Path("~/frames"))[0].parent == home / "frames"
    assert BatchFolder("~/batch").path == home / "batch"
    assert check_report_path("~/report.json") == home / "report.json"
    assert MemoryReport("~/report.json").path == home / "report.json"
    VideoWriter("~/videos").on_predict_start()
    assert (home / "videos").is_dir()


def test_models_loras_and_packs_are_found_at_home(home):
    shutil.copytree(ASSETS / "tiny-shapes", home / "model")
    (home / "style.safetensors").write_bytes(b"")
    assert find_folder("~/model") == home / "model"
    assert LoraChoice.parse("~/style.safetensors:0.5").path == str(home / "style.safetensors")
    assert plan_packing("~/model", "~/packed").out == home / "packed"


def test_a_home_that_nobody_has_is_a_name_as_any_other(home):
    with pytest.raises(FileNotFoundError, match="~nobody-has-this"):
        find_folder("~nobody-has-this/model")
    with pytest.raises((FileNotFoundError, CheckpointError), match="~nobody-has-this"):
        LoraChoice("~nobody-has-this/style.safetensors")
