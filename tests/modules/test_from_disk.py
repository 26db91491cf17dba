"""Checkpoints of other families than Wan, read from files and streamed."""

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from recipes import RECIPES
from recipes.runs import place, placed, run_ours, run_plain, write_media

from fastvideo_lightning import VideoModule


@pytest.mark.parametrize(
    "name",
    [
        "HunyuanVideoPipeline",  # two encoders, three lists of blocks
        "HunyuanVideoFramepackPipeline",  # an image encoder, sections
        "LTX2Pipeline",  # sound, connectors, an encoder whose file has other names
        "CogVideoXImageToVideoPipeline",
        "MochiPipeline",
        "AnimateDiffSDXLPipeline",  # U-Net whose products go by whether a weight wants gradients
    ],
)
def test_a_checkpoint_on_disk_gives_what_plain_diffusers_makes_of_it(
    name: str, tmp_path: Path
) -> None:
    recipe, folder = RECIPES[name], tmp_path / "model"
    recipe.build().save_pretrained(folder)
    media = write_media(tmp_path)
    expected = run_plain(DiffusionPipeline.from_pretrained(folder), recipe, media)
    module = VideoModule.from_pretrained(folder, device_type="cpu")
    with placed(module, place(module)):
        assert run_ours(module, recipe, media).equals(expected)
