"""The folder that a trained tiny-shapes ships in."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from .denoiser import FLOW_SHIFT, restore_denoiser
from .scenes import HELD_OUT_RULE, HELD_OUT_SCENES

FPS = 8
TRAINED_FRAMES = (9, 33)
TRAINED_SIDE_PX = (48, 96)


def save_pipeline(
    folder: Path,
    *,
    vae: AutoencoderKLWan,
    denoiser: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write a diffusers folder with what tells its defaults and what it never saw.

    Autoencoder and denoiser are stored in fp16 for size; the text encoder stays in fp32, because
    transformers loads weights in the dtype they are stored in.
    """
    vae, denoiser = copy.deepcopy(vae).cpu().half(), copy.deepcopy(denoiser).cpu().half()
    restore_denoiser(denoiser)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=copy.deepcopy(text_encoder).cpu().float(),
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
        ),
        transformer=denoiser,
    )
    pipeline.save_pretrained(folder)
    _write_json(folder / "sampling.json", sampling_defaults())
    held_out = {"rule": HELD_OUT_RULE, "held_out": [list(scene) for scene in HELD_OUT_SCENES]}
    _write_json(folder / "heldout.json", held_out)


def sampling_defaults() -> dict[str, object]:
    """What `sampling.json` holds: the settings to sample with, and the ranges trained on."""
    return {
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "fps": FPS,
        "num_inference_steps": 8,
        "guidance_scale": 2.0,
        "trained": {
            "num_frames": list(TRAINED_FRAMES),
            "height": list(TRAINED_SIDE_PX),
            "width": list(TRAINED_SIDE_PX),
        },
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
