"""Checkpoints of other families than Wan, read from files and streamed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_image
from diffusers import DiffusionPipeline
from diffusers.utils import load_image
from recipes import PROMPT, RECIPES

from fastvideo_lightning import PromptDataset, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload
from fastvideo_lightning.modules.results import read_output

SEED = 7


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
    recipe = RECIPES[name]
    recipe.build().save_pretrained(tmp_path / "model")
    media = {"image": write_image(tmp_path / "image.png", size=(32, 32))}

    plain = DiffusionPipeline.from_pretrained(tmp_path / "model")
    plain.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    arguments = recipe.plain(media, lambda path: load_image(str(path)))
    output = plain(prompt=PROMPT, generator=generator, output_type="np", **arguments)
    expected = read_output(output, plain)

    module = VideoModule.from_pretrained(tmp_path / "model", device_type="cpu")
    callbacks = [
        *(LayerwiseOffload(fqn) for fqn in module.denoisers),
        *(CPUExecution(fqn) for fqn in module.text_encoders),
        *(ModelOffload(fqn) for fqn in (*module.image_encoders, *module.vaes)),
    ]
    for callback in callbacks:
        callback.attach(module, "cpu")
    batch = PromptDataset([PROMPT], seed=SEED, **recipe.ours(media))[0]
    video = module.predict_step(batch)
    for callback in callbacks:
        callback.detach()
    assert np.array_equal(video.frames, expected.frames)
    if expected.audio is not None:
        assert video.audio is not None
        assert np.array_equal(video.audio.samples, expected.audio.samples)
