"""On a GPU, too, every video pipeline makes streamed what plain diffusers makes, bit for bit.

With the dtypes of a GPU run, the encoders streamed as well, and twice: the second video meets the
order that was learned from the first.
"""

import copy
import gc

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from support.recipes import PICTURES, PROMPT, RECIPES, as_on_gpu
from support.recipes.runs import SEED, Media, placed, run_ours, run_plain, write_media
from torch import nn

from fastvideo_lightning import VideoGenerator, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from fastvideo_lightning.modules.catalog import UNUSABLE
from fastvideo_lightning.modules.roles import PUBLISHED_WITH_FP32_VAE
from fastvideo_lightning.offload.blocks import find_block_lists
from tests.gpu import requires_gpu

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
NAMES = sorted((RECIPES | PICTURES).keys() - UNUSABLE.keys())


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return write_media(tmp_path_factory.mktemp("media"))


def build(name: str):
    """The pipeline with models of its own: others share encoders, which must not move."""
    pipeline = as_on_gpu((RECIPES | PICTURES)[name].build())
    for fqn, model in pipeline.components.items():
        if isinstance(model, nn.Module):
            setattr(pipeline, fqn, copy.deepcopy(model))
    return pipeline


def place(module: VideoModule) -> list[object]:
    """Stream what has blocks, bring the rest in for its calls."""
    models = (*module.denoisers, *module.text_encoders)
    streamed = [fqn for fqn in models if find_block_lists(module.get_submodule(fqn), fqn)]
    others = (*models, *module.image_encoders, *module.vaes)
    return [
        *map(LayerwiseOffload, streamed),
        *(ModelOffload(fqn) for fqn in others if fqn not in streamed),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_streamed_equals_plain_on_the_device(name, media):
    recipe = (RECIPES | PICTURES)[name]
    plain_pipeline = build(name).to(DEVICE)
    plain = run_plain(plain_pipeline, recipe, media)
    assert len(np.unique(plain.frames)) > 2, "a picture of nothing proves nothing"
    module = VideoModule.from_pipeline(build(name))
    with placed(module, place(module), DEVICE):
        first, second = (run_ours(module, recipe, media) for _ in range(2))
    if not (first.equals(plain) and second.equals(plain)):
        assert run_plain(plain_pipeline, recipe, media).equals(plain), (
            "plain diffusers itself does not repeat its video here"
        )
    assert first.equals(plain)
    assert second.equals(plain)
    del plain_pipeline, module
    gc.collect()


@pytest.mark.parametrize(
    "name",
    [
        "AnimateDiffVideoToVideoPipeline",  # casts its VAE
        "CogVideoXPipeline",  # all in bf16
        "FluxPipeline",  # a picture
        "HunyuanVideoPipeline",
        "LTX2Pipeline",  # with sound
        "WanVACEPipeline",  # the VAE in fp32
    ],
)
def test_the_generator_makes_of_a_checkpoint_what_plain_diffusers_makes(name, media, tmp_path):
    recipe = (RECIPES | PICTURES)[name]
    recipe.build().save_pretrained(tmp_path)
    vae = torch.float32 if name in PUBLISHED_WITH_FP32_VAE else torch.bfloat16
    dtypes = {"default": torch.bfloat16, "vae": vae}
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, dtype=dtypes).to(DEVICE)
    plain = run_plain(pipeline, recipe, media)
    flags = {"text_encoder_cpu_offload": False, "accelerator": DEVICE.type}
    with VideoGenerator.from_pretrained(str(tmp_path), progress=False, **flags) as generator:
        for _ in range(2):
            torch.manual_seed(SEED)
            video = generator.generate_video(
                PROMPT, seed=SEED, save_video=False, **recipe.ours(media)
            )
            assert np.array_equal(video.frames, plain.frames)
            if plain.audio is not None:
                assert np.array_equal(video.audio.samples, plain.audio.samples)
