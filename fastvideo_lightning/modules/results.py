"""What a pipeline's call returns, as frames and sound."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from fastvideo_lightning.modules.catalog import IMAGE_FIELDS, VIDEO_FIELDS, no_frames
from fastvideo_lightning.modules.pipelines import Pipeline
from fastvideo_lightning.modules.steps import NOT_FINITE
from fastvideo_lightning.output.video import Audio, Frames


def check_frames(frames: np.ndarray) -> None:
    """Raise RuntimeError if a frame of `[frames, height, width, 3]` floats is not finite."""
    for number, frame in enumerate(frames):
        if not np.isfinite(frame).all():
            raise RuntimeError(
                f"Frame {number + 1} of {len(frames)} is not a number (NaN or infinity) after the "
                f"decode stage, though the latents were. {NOT_FINITE}"
            )


_AUDIO_FIELDS = ("audio", "sound")


@dataclass(frozen=True)
class Result:
    """One video out of a call.

    Attributes:
        frames: `[frames, height, width, 3] uint8`.
        audio: The sound, or None where the pipeline makes none.
    """

    frames: Frames
    audio: Audio | None = None


def read_output(output: Any, pipeline: Pipeline) -> Result:
    """Take the one video, or the one picture, out of what a call with `output_type="np"` returned.

    Args:
        output: A diffusers output with frames or pictures, and maybe a sound.
        pipeline: Who made it; it knows the sampling rate.

    Raises:
        ValueError: If it holds neither frames nor pictures.
    """
    visual = _first(output, (*VIDEO_FIELDS, *IMAGE_FIELDS))
    if visual is None:
        raise no_frames(pipeline, _names_in(output))
    pixels = _as_array(visual)
    if pixels.ndim == 5:  # a batch of one video; a batch of one picture is a video of one frame
        if len(pixels) != 1:
            raise ValueError(
                f"{type(pipeline).__name__} made {len(pixels)} videos in one call, and one call is "
                "for one: the others would be lost. Pass pipeline_arguments of one video."
            )
        pixels = pixels[0]
    check_frames(pixels)
    audio = _first(output, _AUDIO_FIELDS)
    if audio is None:
        return Result(as_uint8(pixels))
    rate = _first(output, ("sampling_rate",)) or _rate_of(pipeline)
    return Result(as_uint8(pixels), _as_audio(audio, rate))


def _first(output: Any, names: tuple[str, ...]) -> Any:
    """Return the one of the fields that this output has, or None."""
    if isinstance(output, dict):  # as most outputs of diffusers are
        return next((output[name] for name in names if output.get(name) is not None), None)
    known = _names_in(output)
    return next((getattr(output, name) for name in names if name in known), None)


def _names_in(output: Any) -> list[str]:
    if isinstance(output, dict):
        return list(output)
    return [field.name for field in fields(output)] if is_dataclass(output) else []


def as_uint8(frames: np.ndarray) -> Frames:
    """Turn `[frames, height, width, 3]` floats in 0..1 into bytes, one frame at a time.

    Rounds as diffusers does for PIL images; its `export_to_video` cuts off, which is darker.
    """
    pixels = np.empty(frames.shape, dtype=np.uint8)
    for frame, target in zip(frames, pixels, strict=True):
        target[...] = (frame * 255).round()
    return pixels


def _as_array(visual: Any) -> np.ndarray:
    if isinstance(visual, torch.Tensor):  # [batch, frames, channels, height, width]
        return visual.float().movedim(-3, -1).cpu().numpy()
    return np.asarray(visual)


def _rate_of(pipeline: Pipeline) -> int:
    """Return the sampling rate of the sound that a pipeline makes."""
    config = getattr(getattr(pipeline, "vocoder", None), "config", {})
    return int(config.get("output_sampling_rate") or pipeline.audio_sample_rate)


def _as_audio(audio: Any, rate: int) -> Audio:
    """Turn `[batch, channels, samples]` or `[batch, samples]` into one sound."""
    if isinstance(audio, torch.Tensor):
        audio = audio.float().cpu().numpy()
    samples = np.atleast_2d(np.asarray(audio[0], dtype=np.float32))
    return Audio(samples=samples, sampling_rate=rate)
