"""What `dtype="auto"` means on a GPU, and pipelines that cast their VAE while they run."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from support.recipes import RECIPES
from support.recipes.runs import run_ours, write_media
from torch import nn

from fastvideo_lightning import VideoModule
from fastvideo_lightning.callbacks import ModelOffload
from fastvideo_lightning.modules.catalog import UNUSABLE, find_video_pipelines
from fastvideo_lightning.modules.roles import PUBLISHED_WITH_FP32_VAE, stays_fp32

# How an example loads the VAE in fp32, or casts it so.
_LOADS_FP32 = re.compile(r"(AutoencoderKL\w+|vae)\.(from_pretrained|to)\([^)]*torch\.float32\b")
LOADABLE = sorted(
    name
    for name in RECIPES.keys() - UNUSABLE.keys()
    if not name.startswith("Cosmos") and not name.endswith("ModularPipeline")
)
"""Those of one folder each that need no further package."""


def test_the_vaes_left_in_fp32_are_those_that_the_examples_of_diffusers_load_so() -> None:
    shown = set()
    for name, kind in find_video_pipelines().items():
        example = vars(inspect.getmodule(kind)).get("EXAMPLE_DOC_STRING", "")
        if _LOADS_FP32.search(example):
            shown.add(name)
    assert shown == PUBLISHED_WITH_FP32_VAE


def test_only_the_vae_of_such_a_pipeline_stays_fp32() -> None:
    assert stays_fp32("WanPipeline", AutoencoderKLWan)
    assert not stays_fp32("WanPipeline", nn.Linear)
    assert not stays_fp32("AnimateDiffPipeline", AutoencoderKL)
    assert not stays_fp32("APipelineOfTomorrow", AutoencoderKLWan)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("AnimateDiffVideoToVideoPipeline", torch.bfloat16),  # up to encode, down to decode
        ("StableVideoDiffusionPipeline", torch.float16),  # up to encode
    ],
)
def test_a_vae_that_its_pipeline_casts_is_cast_where_it_waits(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    recipe, media = RECIPES[name], write_media(tmp_path)
    recipe.build().save_pretrained(tmp_path / "model")

    def load() -> VideoModule:
        return VideoModule.from_pretrained(tmp_path / "model", dtype=dtype, device_type="cpu")

    plain, module = load(), load()
    casts: list[torch.dtype] = []
    callback = ModelOffload("vae")
    callback.attach(module, "cpu")
    convert = module.vae._apply
    module.vae._apply = lambda fn, recurse=True: (
        casts.append(fn(torch.ones(1)).dtype) or convert(fn)
    )
    for _ in range(2):
        assert run_ours(module, recipe, media).equals(run_ours(plain, recipe, media))
    assert torch.float32 in casts, "the pipeline did not cast it"
    assert module.vae.dtype == plain.vae.dtype
    callback.detach()


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "name",
    [
        "AnimateDiffVideoToVideoPipeline",  # its tables of positions are stored
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in LOADABLE),
    ],
)
def test_what_is_loaded_at_once_has_the_dtype_of_where_it_will_run(
    name: str, device_type: str, tmp_path: Path
) -> None:
    RECIPES[name].build().save_pretrained(tmp_path / "model")
    module = VideoModule.from_pretrained(tmp_path / "model", device_type=device_type)
    loaded = {
        fqn: tensor.dtype
        for fqn, tensor in module.state_dict(keep_vars=True).items()
        if not tensor.is_meta and fqn in module.weight_sources
    }
    device = torch.device(device_type)
    assert loaded == {fqn: module.weight_sources[fqn].dtype_on(device) for fqn in loaded}
    assert loaded or name != "AnimateDiffVideoToVideoPipeline"
