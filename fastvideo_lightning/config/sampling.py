"""SamplingParams: how a video is sampled."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from numbers import Integral, Real
from typing import Any, Self

from fastvideo_lightning.config.checks import check_known, check_text

MAX_FPS = 240
MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes without wrapping around


@dataclass(frozen=True)
class SamplingParams:
    """How one video is sampled; None means what the model's family prefers.

    Attributes:
        negative_prompt: What the video should not show.
        height: Pixels.
        width: Pixels.
        num_frames: Frames in the video.
        fps: Frames per second of the written video, 1 to 240.
        num_inference_steps: Denoising steps.
        guidance_scale: Strength of classifier-free guidance; 1 and less turn it off.
        guidance_scale_2: The same for the second expert of a two-expert model.
        seed: Seed of the CPU generator that draws the noise, 0 to 2**63 - 1.
        image_path: First frame, for models that take an image.
        last_image_path: Last frame, for models that take two.
        video_path: Video to start from, for models that take one.
        scheduler: Class of diffusers' that samples in place of the checkpoint's scheduler, with its
            settings, such as `FlowMatchEulerDiscreteScheduler`.
        flow_shift: Shift of the flow schedule; None keeps the checkpoint's.
        max_sequence_length: Tokens of the prompt that reach the denoiser.
        pipeline_arguments: Further arguments of the diffusers pipeline's call, by name, such as
            `strength` or `pose_video`; the path of an image or video file stands for its content.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is impossible whatever the model.
    """

    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    seed: int = 1024
    image_path: str | os.PathLike[str] | None = None
    last_image_path: str | os.PathLike[str] | None = None
    video_path: str | os.PathLike[str] | None = None
    scheduler: str | None = None
    flow_shift: float | None = None
    max_sequence_length: int | None = None
    # Not compared: values may be tensors, which have no plain equality.
    pipeline_arguments: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.seed is None:
            object.__setattr__(self, "seed", type(self).seed)
        self._check_text()
        for name in ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length"):
            self._check_integer(name, low=1)
        self._check_integer("fps", low=1, high=MAX_FPS)
        self._check_integer("seed", low=0, high=MAX_SEED)
        for name in ("guidance_scale", "guidance_scale_2"):
            self._check_number(name, "a finite number, 0 or more", above=None)
        self._check_number("flow_shift", "a finite number above 0", above=0.0)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make one from names and values; an unknown name is a ValueError with the nearest."""
        check_known(values, [each.name for each in fields(cls)], cls.__name__)
        return cls(**values)

    def given(self) -> dict[str, Any]:
        """Return the fields that are not None, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def merge(self, **overrides: Any) -> "SamplingParams":
        """Return a copy with `overrides` in place; one that is None leaves its field as it is."""
        check_known(overrides, [each.name for each in fields(self)], type(self).__name__)
        given = {name: value for name, value in overrides.items() if value is not None}
        return SamplingParams(**{**self.given(), **given})

    def _check_text(self) -> None:
        if not isinstance(self.negative_prompt, str | None):
            raise TypeError(
                f"negative_prompt must be text, got {self.negative_prompt!r}. "
                'Pass a string such as negative_prompt="blurry".'
            )
        if self.negative_prompt is not None:
            check_text(self.negative_prompt, "negative_prompt")
        if not isinstance(self.scheduler, str | None) or self.scheduler == "":
            raise TypeError(
                f"scheduler must be the name of one of diffusers' classes, got {self.scheduler!r}. "
                'Pass scheduler="FlowMatchEulerDiscreteScheduler", or leave it out.'
            )
        for name, kind, example in _PATHS:
            value = getattr(self, name)
            if not isinstance(value, str | os.PathLike | None) or value == "":
                raise TypeError(
                    f"{name} must be the path of {kind} file, got {value!r}. "
                    f'Pass {name}="{example}", or leave it out.'
                )
            if value is not None and (found := os.path.expanduser(value)) != os.fspath(value):
                object.__setattr__(self, name, found)
        if not isinstance(self.pipeline_arguments, Mapping | None):
            raise TypeError(
                f"pipeline_arguments must map names to values, got {self.pipeline_arguments!r}. "
                'Pass such as pipeline_arguments={"strength": 0.7}, or leave it out.'
            )

    def _check_integer(self, name: str, *, low: int, high: int | None = None) -> None:
        value = getattr(self, name)
        if value is None:
            return
        wanted = "a whole number, " + (f"{low} to {high}" if high else f"{low} or more")
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(_refusal(name, wanted, value))
        value = int(value)
        if value < low or (high is not None and value > high):
            raise ValueError(_refusal(name, wanted, value))
        object.__setattr__(self, name, value)

    def _check_number(self, name: str, wanted: str, *, above: float | None) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(_refusal(name, wanted, value))
        too_low = value < 0 if above is None else value <= above
        if not isfinite(value) or too_low:
            raise ValueError(_refusal(name, wanted, value))
        object.__setattr__(self, name, float(value))


@dataclass(frozen=True)
class ResolvedSampling(SamplingParams):
    """What a model has completed, checked and warned of; it does not do so again."""


_PATHS = (
    ("image_path", "an image", "image.png"),
    ("last_image_path", "an image", "image.png"),
    ("video_path", "a video", "video.mp4"),
)
EXAMPLES = {
    "height": 480,
    "width": 832,
    "num_frames": 81,
    "fps": 16,
    "num_inference_steps": 50,
    "guidance_scale": 5.0,
    "guidance_scale_2": 3.0,
    "seed": 1024,
    "flow_shift": 3.0,
    "max_sequence_length": 512,
}


def _refusal(name: str, wanted: str, value: object) -> str:
    return (
        f"{name} must be {wanted}, got {value!r}. "
        f"Pass one such as {name}={EXAMPLES[name]}, or leave it out for the default."
    )
