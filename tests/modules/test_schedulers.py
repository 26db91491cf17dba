"""Another scheduler than the checkpoint's: the frames of plain diffusers with it."""

import diffusers
import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.recipes import RECIPES
from support.recipes.runs import run_plain
from support.references import SEED, frames_of, load_plain

from fastvideo_lightning import SamplingParams, VideoGenerator, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload

SAMPLING = {**SIZE, "guidance_scale": 1.0, "num_inference_steps": 3}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CHOICES = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "FlowMatchLCMScheduler": {"shift": 3.0},
    "DPMSolverMultistepScheduler": {"flow_shift": 3.0, **FLOW},
    "UniPCMultistepScheduler": {},
}


def plain_frames(folder, name: str, **changes) -> np.ndarray:
    pipeline = load_plain(folder, expects_image=False)
    config = pipeline.scheduler.config
    pipeline.scheduler = getattr(diffusers, name).from_config(config, **changes)
    torch.manual_seed(SEED)
    return frames_of(pipeline, SAMPLING)


@pytest.fixture(scope="module")
def generator(checkpoint):
    streaming = LayerwiseOffload("transformer")
    with VideoGenerator.from_pretrained(
        checkpoint("t2v"), accelerator="cpu", callbacks=[streaming]
    ) as generator:
        yield generator


@pytest.mark.parametrize("name", CHOICES)
def test_frames_are_those_of_plain_diffusers_with_that_scheduler(name, generator, checkpoint):
    before = generator.module.pipeline.scheduler
    expected = plain_frames(checkpoint("t2v"), name, **CHOICES[name])
    for _ in range(2):
        state = torch.get_rng_state()
        video = generator.generate_video(
            PROMPT, save_video=False, seed=SEED, scheduler=name, **SAMPLING
        )
        assert np.array_equal(video.frames, expected)
        assert torch.equal(torch.get_rng_state(), state)
    assert generator.module.pipeline.scheduler is before


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_the_schedulers_of_few_step_adapters_go_with_models_of_noise(name) -> None:
    recipe = RECIPES["AnimateDiffPipeline"]
    plain = recipe.build()
    plain.scheduler = getattr(diffusers, name).from_config(plain.scheduler.config)
    torch.manual_seed(SEED)
    expected = run_plain(plain, recipe, {}).frames
    module = VideoModule.from_pipeline(recipe.build())
    with VideoGenerator(module, accelerator="cpu", progress=False) as generator:
        settings = {**recipe.ours({}), "seed": SEED, "scheduler": name}
        video = generator.generate_video(PROMPT, save_video=False, **settings)
    assert np.array_equal(video.frames, expected)


def test_a_flow_shift_goes_with_it(generator, checkpoint):
    name = "FlowMatchEulerDiscreteScheduler"
    video = generator.generate_video(
        PROMPT, save_video=False, seed=SEED, scheduler=name, flow_shift=7.0, **SAMPLING
    )
    assert np.array_equal(video.frames, plain_frames(checkpoint("t2v"), name, shift=7.0))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("DDIMScheduler", "samples something else"), ("Euler", "is none of diffusers'")],
)
def test_one_that_does_not_fit_is_refused_with_those_that_do(name, reason, generator):
    with pytest.raises(ValueError, match=rf"scheduler='{name}' {reason}.*FlowMatchEuler"):
        generator.generate_video(PROMPT, save_video=False, scheduler=name)
    with pytest.raises(TypeError, match="must be the name of one of diffusers' classes"):
        SamplingParams(scheduler=3)
