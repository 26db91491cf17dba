"""Pipelines are found by what their calls return: no list names them."""

from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
from diffusers import DiffusionPipeline, LTXPipeline
from diffusers.utils.outputs import BaseOutput
from support.recipes import ltx

from fastvideo_lightning import VideoModule
from fastvideo_lightning.modules import GenericModule
from fastvideo_lightning.modules.catalog import find_image_pipelines, find_video_pipelines
from fastvideo_lightning.modules.inventory import list_entries


@dataclass
class Frames(BaseOutput):
    frames: Any


@dataclass
class Sound(BaseOutput):
    audio: Any


class MadeThere(DiffusionPipeline):
    def __call__(self, prompt):
        return Frames(frames=prompt)


class MadeElsewhere(DiffusionPipeline):
    def __call__(self, prompt) -> Frames | tuple:
        return self.finish(prompt)


@dataclass
class Pictures(BaseOutput):
    images: Any


class CountsItsPictures(DiffusionPipeline):
    def __call__(self, prompt, video_length=8):
        return Pictures(images=prompt)


class MakesOnePicture(DiffusionPipeline):
    def __call__(self, prompt):
        return Pictures(images=prompt)


class MakesSound(DiffusionPipeline):
    def __call__(self, prompt) -> Sound | tuple:
        return Sound(audio=prompt)


class InheritsItsCall(LTXPipeline):
    """Another class over an old call."""


TOMORROW = {
    "TomorrowAPipeline": MadeThere,
    "TomorrowBPipeline": MadeElsewhere,
    "TomorrowCPipeline": InheritsItsCall,
    "TomorrowDPipeline": CountsItsPictures,
}


@pytest.fixture
def known_before(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Give diffusers new pipelines; returns those that it had."""
    before = set(find_video_pipelines())
    others = {"TomorrowSoundPipeline": MakesSound, "TomorrowPicturePipeline": MakesOnePicture}
    added = {**TOMORROW, **others}
    for name, kind in added.items():
        monkeypatch.setattr(diffusers, name, kind, raising=False)
    monkeypatch.setattr(diffusers, "__all__", [*diffusers.__all__, *added])
    return before


def test_new_pipelines_of_frames_are_found_and_those_of_sound_or_of_a_picture_are_not(
    known_before: set[str],
) -> None:
    assert set(find_video_pipelines()) - known_before == TOMORROW.keys()
    assert "TomorrowPicturePipeline" in find_image_pipelines()
    assert "TomorrowDPipeline" not in find_image_pipelines()


def test_a_new_pipeline_has_a_row_and_runs_through_the_generic_module(
    known_before: set[str],
) -> None:
    (row,) = (entry for entry in list_entries() if entry.name == "TomorrowCPipeline")
    assert not row.family
    assert row.reason is None
    assert row.roles.denoisers == ("transformer",)
    assert row.shares["transformer"] >= 0.95
    module = VideoModule.from_pipeline(ltx.pipeline(InheritsItsCall))
    assert type(module) is GenericModule
    assert module.file_suffix == ".mp4"
