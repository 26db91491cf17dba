"""What plain diffusers makes of a checkpoint, and what a module makes, for comparison."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline
from diffusers.utils import load_image

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from support.checkpoints import PROMPT, SIZE

SEED = 7
# What each kind of checkpoint needs beyond `SIZE`; its images by their argument's name.
CASES: dict[str, dict[str, Any]] = {
    "t2v": {},
    "two_experts": {"guidance_scale": 4.0, "guidance_scale_2": 3.0},
    "ti2v": {"width": 64},
    "ti2v_image": {"width": 64, "image_path": "image"},
    "i2v_clip": {"image_path": "image"},
    "i2v": {"image_path": "image", "guidance_scale": 3.5, "guidance_scale_2": 2.5},
    "first_last": {"image_path": "image", "last_image_path": "last_image"},
}


def kind_of(case: str) -> str:
    """Return the checkpoint that a case runs on."""
    return case.removesuffix("_image")


def sampling_of(case: str, images: dict[str, Path]) -> dict[str, Any]:
    """Return the sampling fields of a case, with the paths of its images."""
    settings = {"guidance_scale": 3.0, **SIZE, **CASES[case]}
    return {name: images.get(value, value) for name, value in settings.items()}


def load_plain(
    folder: Path, *, expects_image: bool, dtype: Any = torch.float32, device: str = "cpu"
) -> DiffusionPipeline:
    """Load with diffusers alone.

    Args:
        folder: The checkpoint.
        expects_image: Build the image-to-video pipeline where the checkpoint declares the other.
        dtype: What diffusers takes: a dtype, or one by component.
        device: Where all components compute.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    if expects_image and not isinstance(pipeline, WanImageToVideoPipeline):
        pipeline = WanImageToVideoPipeline(
            **pipeline.components, image_encoder=None, image_processor=None, expand_timesteps=True
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def make_plain_frames(folder: Path, sampling: dict[str, Any], **loading: Any) -> np.ndarray:
    """Return `[frames, height, width, 3] uint8` as plain diffusers makes them.

    Args:
        folder: The checkpoint.
        sampling: Arguments of the pipeline call, images by their paths.
        **loading: `dtype` and `device` of `load_plain`.
    """
    sampling = dict(sampling)
    images = {
        argument: load_image(str(sampling.pop(name)))
        for name, argument in (("image_path", "image"), ("last_image_path", "last_image"))
        if name in sampling
    }
    pipeline = load_plain(folder, expects_image=bool(images), **loading)
    return frames_of(pipeline, {**sampling, **images})


def frames_of(pipeline: Any, sampling: dict[str, Any]) -> np.ndarray:
    """Return `[frames, height, width, 3] uint8` of one call of diffusers' pipeline."""
    output = pipeline(
        prompt=PROMPT,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pil",
        **sampling,
    )
    return np.stack([np.asarray(frame) for frame in output.frames[0]])


def check_frames(
    module: VideoModule,
    callbacks: list[Any],
    expected: np.ndarray,
    sampling: dict[str, Any],
    *,
    accelerator: str = "cpu",
) -> None:
    """Compare two videos of a module, placed by callbacks, with what is expected."""
    fabric = L.Fabric(
        accelerator=accelerator, devices=1, strategy=HostResidentStrategy(), callbacks=callbacks
    )
    fabric.launch()
    fabric.setup(module)
    prompts = PromptDataset([PROMPT], seed=SEED, **sampling)
    for _ in range(2):
        (video,) = PredictLoop(fabric).run(module, prompts, return_predictions=True)
        assert np.array_equal(video.frames, expected)
    fabric.call("teardown")
