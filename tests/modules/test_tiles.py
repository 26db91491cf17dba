"""Decoding in tiles or slices: by those models of a pipeline that can, and as they came after."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.recipes import PROMPT, RECIPES
from support.recipes.runs import SEED, run_plain

from fastvideo_lightning import OffloadConfig, SamplingParams, VideoGenerator, VideoModule
from fastvideo_lightning.generator.replan import explain_memory
from fastvideo_lightning.modules.steps import Stage
from fastvideo_lightning.plan.choose import possible_configs
from fastvideo_lightning.plan.workload import Workload


def make_generator(pipeline: Any, **flags: Any) -> VideoGenerator:
    module = VideoModule.from_pipeline(pipeline)
    return VideoGenerator(module, OffloadConfig(**flags), accelerator="cpu", progress=False)


@pytest.mark.parametrize("name", ["LTX2Pipeline", "AnimateDiffPipeline", "Kandinsky6TI2VAPipeline"])
def test_the_vae_of_the_frames_decodes_so_beside_models_that_cannot(name: str) -> None:
    pipeline = RECIPES[name].build()
    with make_generator(pipeline, vae_tiling=True, vae_slicing=True) as generator:
        generator.setup()
        assert pipeline.vae.use_tiling
        assert pipeline.vae.use_slicing
    assert not pipeline.vae.use_tiling
    assert not pipeline.vae.use_slicing


@pytest.mark.parametrize("flag", ["vae_tiling", "vae_slicing"])
def test_where_no_model_can_it_is_refused_by_name(flag: str) -> None:
    generator = make_generator(RECIPES["StableVideoDiffusionPipeline"].build(), **{flag: True})
    with pytest.raises(ValueError, match=rf"{flag}=True: .* for vae \(AutoencoderKLTemporalDeco"):
        generator.setup()
    generator.close()


def of_its_own() -> Any:
    return RECIPES["AllegroPipeline"].build()


def of_the_users() -> Any:
    pipeline = RECIPES["LTXPipeline"].build()
    pipeline.vae.enable_tiling(16, 16, 8, 8)
    return pipeline


@pytest.mark.parametrize("build", [of_its_own, of_the_users])
@pytest.mark.parametrize("flag", [False, True])
def test_tiles_that_a_vae_came_with_stay(build: Callable[[], Any], flag: bool) -> None:
    pipeline = build()
    recipe = RECIPES[type(pipeline).__name__]
    plain = run_plain(build(), recipe, {})
    with make_generator(pipeline, vae_tiling=flag) as generator:
        settings = {**recipe.ours({}), "seed": SEED}
        video = generator.generate_video(PROMPT, save_video=False, **settings)
    assert np.array_equal(video.frames, plain.frames)
    assert pipeline.vae.use_tiling


def test_no_plan_and_no_advice_has_tiles_where_no_model_has_them() -> None:
    for name, choices in (
        ("StableVideoDiffusionPipeline", {False}),
        ("LTX2Pipeline", {False, True}),
    ):
        module = VideoModule.from_pipeline(RECIPES[name].build())
        for subject in (Workload.bare(module), Workload.of(module, SamplingParams(num_frames=9))):
            configs = possible_configs(subject, OffloadConfig())
            assert {config.vae_tiling for config in configs} == choices
            advice = explain_memory(Stage.DECODE, OffloadConfig(), has_tiles=subject.has_tiles)
            assert ("vae_tiling" in advice) is subject.has_tiles
