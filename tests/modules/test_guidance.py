"""A negative prompt that nobody reads is told, and one that counts is not."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from support.recipes import RECIPES
from support.recipes.recipe import PROMPT
from support.recipes.runs import SEED, write_media

from fastvideo_lightning import PromptDataset, SamplingParams, VideoGenerator, VideoModule
from fastvideo_lightning.modules.catalog import UNUSABLE
from fastvideo_lightning.modules.signature import CallSignature

FAILS_UNGUIDED = {"TextToVideoZeroPipeline"}  # in diffusers itself
SMALL = {"height": 48, "width": 48, "num_frames": 9, "num_inference_steps": 2, "seed": 3}


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_negative_prompt_without_guidance_is_told_and_changes_nothing(scale):
    with VideoGenerator.from_pretrained(accelerator="cpu", progress=False) as generator:
        make = generator.generate_video
        options = {"save_video": False, "guidance_scale": scale, **SMALL}
        plain = make("a red circle", **options)
        with pytest.warns(
            UserWarning, match=f"negative_prompt has no effect.*guidance_scale={scale}"
        ):
            negative = make("a red circle", negative_prompt="blue square", **options)
    assert np.array_equal(plain.frames, negative.frames)


def test_a_negative_prompt_that_counts_is_not_told():
    asked = {"save_video": False, "guidance_scale": 3.0, **SMALL}
    with (
        VideoGenerator.from_pretrained(accelerator="cpu", progress=False) as generator,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        plain = generator.generate_video("a red circle", **asked)
        negative = generator.generate_video("a red circle", negative_prompt="blue", **asked)
    assert not np.array_equal(plain.frames, negative.frames)


@pytest.mark.parametrize("name", ["num_videos_per_prompt", "num_images_per_prompt"])
def test_a_second_video_of_one_call_is_refused_by_every_pipeline_that_would_make_it(name):
    pipelines = [diffusers.WanPipeline, diffusers.LTXPipeline, diffusers.FluxPipeline]
    takes = [each for each in pipelines if CallSignature(each).takes(name)]
    assert takes
    for pipeline in takes:
        signature = CallSignature(pipeline)
        signature.check_further({name: 1}, set(), pipeline.__name__)
        with pytest.raises(ValueError, match=f"{name} must be 1, got 2.*would be lost"):
            signature.check_further({name: 2}, set(), pipeline.__name__)


def test_several_videos_that_come_by_another_way_are_refused_too():
    from types import SimpleNamespace

    from fastvideo_lightning.modules.results import read_output

    output = {"frames": np.zeros((2, 3, 8, 8, 3))}
    with pytest.raises(ValueError, match="SimpleNamespace made 2 videos in one call"):
        read_output(output, SimpleNamespace())


NEED_GUIDANCE = {
    *("HunyuanVideo15ModularPipeline", "LTXModularPipeline", "WanModularPipeline"),
    *("WanImage2VideoModularPipeline", "Wan22ModularPipeline", "Wan22Image2VideoModularPipeline"),
    "Wan22VaceModularPipeline",
}
"""Diffusers' own blocks fail at a scale of 1: they use an embedding that they have not made."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - UNUSABLE.keys() - FAILS_UNGUIDED))
def test_a_negative_prompt_is_told_of_where_it_changes_nothing_and_only_there(
    name, scale, tmp_path
):
    if scale <= 1 and name in NEED_GUIDANCE:
        pytest.skip("diffusers' blocks need a scale above 1")
    recipe, media = RECIPES[name], write_media(tmp_path)
    module = VideoModule.from_pipeline(recipe.build())
    if not CallSignature(module.pipeline).takes("negative_prompt"):
        pytest.skip("takes no negative prompt")
    asked = recipe.ours(media)
    is_scaled = CallSignature(module.pipeline).takes("guidance_scale")
    is_scaled |= hasattr(module.pipeline, "guider")
    if is_scaled:
        asked["guidance_scale"] = scale
    frames = []
    for negative in ("black", "a white square"):
        item = PromptDataset([PROMPT], **{**asked, "negative_prompt": negative})[0]
        torch.manual_seed(SEED)
        frames.append(module.predict_step(item).frames)
    params = SamplingParams(**{**asked, "negative_prompt": "black"})
    is_told = bool(module.without_effect(params, module.fill_sampling(params)))
    has_no_effect = np.array_equal(*frames)
    assert has_no_effect or not is_told
    if is_scaled and scale <= 1:  # some small random models make the same of any two prompts
        assert is_told == has_no_effect
