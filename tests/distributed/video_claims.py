"""Whole pipelines on every rank of a world that streams together."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.checkpoints import PROMPT

from fastvideo_lightning import PromptDataset, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from fastvideo_lightning.offload.distributed import shard_plan


def frames_of(module: VideoModule, callbacks: list[Any], batch: Any) -> np.ndarray:
    """Make a video as the loop does."""
    for callback in callbacks:
        callback.on_predict_batch_start()
    try:
        return module.predict_step(batch, 0).frames
    finally:
        for callback in callbacks:
            callback.on_predict_batch_end()


def attach_all(module: VideoModule, device: torch.device, **options: Any) -> list[Any]:
    callbacks = [
        *(LayerwiseOffload(fqn, **options) for fqn in module.denoisers),
        *(Resident(fqn) for fqn in module.text_encoders),
        *(ModelOffload(fqn) for fqn in (*module.image_encoders, *module.vaes)),
    ]
    for callback in callbacks:
        callback.attach(module, device)
    return callbacks


def frames_alone(device: torch.device, folder: Any, batch: Any, *, doubled: bool) -> np.ndarray:
    """The same video by this process alone, everything in its place."""
    module = VideoModule.from_pretrained(folder)
    components = [*module.denoisers, *module.text_encoders, *module.image_encoders, *module.vaes]
    for fqn in components:
        Resident(fqn).attach(module, device)
    if doubled:
        double(module)
    return module.predict_step(batch, 0).frames


def double(module: VideoModule) -> None:
    """Edit the last block of every denoiser."""
    for fqn in module.denoisers:
        blocks = module.get_submodule(f"{fqn}.blocks")
        blocks[len(blocks) - 1].attn1.to_q.weight.data.mul_(2)


def videos_equal_those_made_alone(
    device: torch.device, folder: Any, sampling: dict[str, Any], **options: Any
) -> tuple[int, int]:
    """Each rank its own seed; return the bytes that the rank holds and those of the blocks."""
    shard_plan.CHUNK_BYTES = 1 << (19 if folder == "tiny-shapes" else 13)  # a few for each block
    batch = PromptDataset([PROMPT], seed=7 + dist.get_rank(), **sampling)[0]
    expected = frames_alone(device, folder, batch, doubled=False)
    module = VideoModule.from_pretrained(folder)
    callbacks = attach_all(module, device, shard_transport="gather", **options)
    for _ in range(2):
        assert np.array_equal(frames_of(module, callbacks, batch), expected)

    def fail(*_: Any) -> None:
        raise RuntimeError("the block failed")

    block = module.get_submodule(f"{module.denoisers[-1]}.blocks.1")
    handle = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the block failed"):
        frames_of(module, callbacks, batch)
    handle.remove()
    assert np.array_equal(frames_of(module, callbacks, batch), expected)
    engine = callbacks[0].attachments[0].engine
    engine.check()
    streamed = [unit for unit in engine.units if not unit.transient]
    share = sum(unit.slab.size_bytes for unit in streamed)
    whole = sum(unit.size_bytes for unit in streamed)

    double(module)
    edited = frames_alone(device, folder, batch, doubled=True)
    assert (edited != expected).any()
    assert np.array_equal(frames_of(module, callbacks, batch), edited)
    for callback in callbacks:
        callback.detach()
    return share, whole
