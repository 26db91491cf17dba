"""Checkpoints of other families than Wan, read from files and streamed."""

from pathlib import Path

import pytest
from diffusers import AnimateDiffControlNetPipeline, DiffusionPipeline
from PIL import Image
from support.recipes import RECIPES
from support.recipes.recipe import Recipe
from support.recipes.runs import place, placed, run_ours, run_plain, write_media
from support.recipes.unets import animate_parts, controlnet

from fastvideo_lightning import CheckpointError, VideoModule
from fastvideo_lightning.pack import plan_packing


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


def save_two_controlnets(folder: Path) -> None:
    """Save an AnimateDiff with two control nets, as diffusers saves it."""
    parts = animate_parts(controlnet=[controlnet(), controlnet(norm_num_groups=4)])
    AnimateDiffControlNetPipeline(**parts).save_pretrained(folder)


def test_several_control_nets_are_read_from_their_folders_and_streamed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_two_controlnets(folder)
    assert (folder / "controlnet_1").is_dir()
    frames = [Image.new("RGB", (16, 16), (20 * n, 90, 200)) for n in range(4)]
    recipe = Recipe(
        lambda: None,
        {
            **{"height": 16, "width": 16, "num_frames": 4, "num_inference_steps": 2},
            "pipeline_arguments": {
                "conditioning_frames": [frames, frames[::-1]],
                "controlnet_conditioning_scale": [0.5, 1.0],
            },
        },
    )
    expected = run_plain(AnimateDiffControlNetPipeline.from_pretrained(folder), recipe, {})
    module = VideoModule.from_pretrained(folder, device_type="cpu")
    assert all(weight.is_meta for weight in module.get_submodule("controlnet").parameters())
    with placed(module, place(module)):
        assert run_ours(module, recipe, {}).equals(expected)


def test_a_control_net_of_several_that_is_damaged_is_named(tmp_path: Path) -> None:
    save_two_controlnets(tmp_path)
    config = tmp_path / "controlnet_1" / "config.json"
    config.write_text(config.read_text().replace('"ControlNetModel"', '"DDIMScheduler"'))
    with pytest.raises(CheckpointError, match="controlnet_1/config.json.*got 'DDIMScheduler'"):
        VideoModule.from_pretrained(tmp_path, device_type="cpu")


def test_several_control_nets_are_not_packed(tmp_path: Path) -> None:
    save_two_controlnets(tmp_path / "model")
    with pytest.raises(ValueError, match="make one MultiControlNetModel, which cannot be packed"):
        plan_packing(tmp_path / "model", tmp_path / "packed")
