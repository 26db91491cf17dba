"""A modular pipeline of diffusers is called as the others are."""

import inspect
from collections.abc import Callable

import diffusers
import numpy as np
import pytest
from diffusers import WanModularPipeline
from support.recipes import RECIPES

from fastvideo_lightning import PromptDataset, SamplingParams, VideoModule
from fastvideo_lightning.modules.pipelines import call_parameters

FEW = {"num_inference_steps": 2, "height": 32, "width": 32, "num_frames": 5}


@pytest.fixture
def module() -> VideoModule:
    return VideoModule.from_pipeline(RECIPES["WanModularPipeline"].build())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[VideoModule], list[tuple[str, int]]]:
    def record(module: VideoModule) -> list[tuple[str, int]]:
        moments: list[tuple[str, int]] = []

        def announce(name: str, step: int, num_steps: int, **_: object) -> None:
            moments.append((name, step))

        monkeypatch.setattr(module, "_announce", announce)
        return moments

    return record


def test_what_a_block_needs_and_none_makes_has_to_be_given() -> None:
    takes = call_parameters(diffusers.WanAnimate2ModularPipeline)
    needed = {name for name, p in takes.items() if p.default is inspect.Parameter.empty}
    assert needed == {"prompt", "image", "driving_video"}


def test_an_image_that_is_missing_is_named_before_anything_is_computed() -> None:
    module = VideoModule.from_pipeline(RECIPES["WanAnimate2ModularPipeline"].build())
    with pytest.raises(ValueError, match="WanAnimate2ModularPipeline needs image. Pass image_path"):
        module.resolve_sampling(SamplingParams())


def test_its_steps_are_announced(module: VideoModule, recorded: Callable) -> None:
    moments = recorded(module)
    module.predict_step(PromptDataset(["x"], **FEW)[0])
    start, end = "on_denoise_step_start", "on_denoise_step_end"
    assert moments == [(start, 0), (end, 0), (start, 1), (end, 1)]


def test_the_callers_pipeline_keeps_its_bars_and_its_class() -> None:
    pipeline = RECIPES["WanModularPipeline"].build()
    before = pipeline.blocks.sub_blocks["denoise"].sub_blocks["denoise"].__dict__.keys()
    VideoModule.from_pipeline(pipeline)
    after = pipeline.blocks.sub_blocks["denoise"].sub_blocks["denoise"].__dict__.keys()
    assert before == after
    assert type(pipeline) is WanModularPipeline


def test_the_guidance_scale_is_its_guiders_for_one_video(module: VideoModule) -> None:
    guider = module.pipeline.guider

    def frames(**sampling) -> np.ndarray:
        return module.predict_step(PromptDataset(["x"], **FEW, **sampling)[0]).frames

    own, stronger = frames(), frames(guidance_scale=7.0)
    assert not np.array_equal(own, stronger)
    assert np.array_equal(own, frames())
    module.pipeline.guider = guider.new(guidance_scale=7.0)
    assert np.array_equal(stronger, frames())
