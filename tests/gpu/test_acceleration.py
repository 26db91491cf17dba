"""On a GPU, too: caches and attention backends make what they make in plain diffusers."""

import lightning as L
import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from support.checkpoints import PROMPT
from support.references import SEED, frames_of, load_plain

from fastvideo_lightning import (
    HostResidentStrategy,
    OffloadConfig,
    PredictLoop,
    PromptDataset,
    VideoGenerator,
    VideoModule,
)
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.modules.acceleration import accelerate
from tests.gpu import requires_gpu
from tests.modules.test_acceleration import CACHES, SAMPLING, folder, low_threshold

__all__ = ["folder", "low_threshold"]
pytestmark = [pytest.mark.gpu, requires_gpu]
DTYPES = {"default": torch.bfloat16, "vae": torch.float32}
SETTINGS = {**SAMPLING, "guidance_scale": 3.0}


def plain_frames(folder, change) -> np.ndarray:
    pipeline = load_plain(folder, expects_image=False, dtype=DTYPES, device="cuda")
    change(pipeline)
    return frames_of(pipeline, SETTINGS)


def check_frames(folder, expected: np.ndarray, *, skippable: bool, cache: str) -> int:
    """Compare two videos with what is expected; return the bytes that they copied."""
    streaming = LayerwiseOffload("transformer", skippable=skippable)
    callbacks = [streaming, Resident("text_encoder"), Resident("vae")]
    fabric = L.Fabric(
        accelerator="cuda", devices=1, strategy=HostResidentStrategy(), callbacks=callbacks
    )
    fabric.launch()
    module = VideoModule.from_pretrained(folder)
    fabric.setup(module)
    turn_off = accelerate(module, OffloadConfig(cache=cache))
    prompts = PromptDataset([PROMPT], seed=SEED, **SETTINGS)
    for _ in range(2):
        (video,) = PredictLoop(fabric).run(module, prompts, return_predictions=True)
        assert np.array_equal(video.frames, expected)
    engine = streaming.attachments[0].engine
    engine.check()
    turn_off()
    fabric.call("teardown")
    return engine.stats.bytes_copied


def check_flags(folder, expected: np.ndarray, **flags) -> None:
    """Compare two videos of a generator with what is expected."""
    with VideoGenerator.from_pretrained(
        folder, accelerator="cuda", text_encoder_cpu_offload=False, **flags
    ) as generator:
        for _ in range(2):
            video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **SETTINGS)
            assert np.array_equal(video.frames, expected)


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_makes_the_frames_of_plain_diffusers_and_skipped_blocks_are_not_copied(
    cache, folder, low_threshold
):
    expected = plain_frames(folder, lambda p: p.transformer.enable_cache(CACHES[cache](p)))
    copied = [
        check_frames(folder, expected, skippable=skippable, cache=cache)
        for skippable in (False, True)
    ]
    check_flags(folder, expected, cache=cache)
    if cache != "pyramid":  # which skips a part of a block
        assert copied[1] < 0.9 * copied[0]


@pytest.mark.parametrize("backend", ["_native_flash", "_native_efficient", "_native_math"])
def test_an_attention_backend_makes_the_frames_of_plain_diffusers(backend, folder):
    active = _AttentionBackendRegistry.get_active_backend()[0]
    try:
        expected = plain_frames(folder, lambda p: p.transformer.set_attention_backend(backend))
    finally:
        _AttentionBackendRegistry.set_active_backend(active)
    check_flags(folder, expected, attention_backend=backend)
