"""What a user may choose: where weights live, and how a video is sampled.

`OffloadConfig` and `SamplingParams` are frozen and check themselves once, when
they are made, so nothing deeper has to.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import isfinite
from numbers import Integral, Real
from typing import Any, Self

HOST_MEMORY = ("auto", "mapped", "pinned", "pageable")
MAX_FPS = 240
MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes without wrapping around


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """Return the known name that looks most like `name`, or None when none is close."""
    words = {word.replace("-", "_"): word for word in known}
    close = get_close_matches(name.replace("-", "_").lower(), words, n=1, cutoff=0.6)
    return words[close[0]] if close else None


def check_known(given: Collection[str], known: Collection[str], where: str) -> None:
    """Raise ValueError for the first name in `given` that is not `known`, naming the nearest."""
    for name in given:
        if name not in known:
            near = nearest_name(str(name), known)
            hint = f"Did you mean {near}?" if near else f"Known are: {', '.join(known)}."
            raise ValueError(f"{where} does not know {name!r}. {hint}")


@dataclass(frozen=True)
class OffloadConfig:
    """Where each part of a pipeline keeps its weights, and where it computes.

    Attributes:
        dit_layerwise_offload: Stream the denoiser's blocks from host memory through device slots.
        use_fsdp_inference: Shard the denoiser over all ranks with FSDP2.
        dit_cpu_offload: With FSDP, keep the shards in host memory; without FSDP, no effect.
        text_encoder_cpu_offload: Keep the text encoder on the host and compute it there.
        image_encoder_cpu_offload: Have the image encoder on the device only during its call.
        vae_cpu_offload: Have the VAE on the device only while it encodes or decodes.
        pin_cpu_memory: Pin the host copies: faster transfers, but locked memory.
        text_encoder_layerwise_offload: Stream the text encoder instead of computing it on the CPU.
        vae_tiling: Decode in tiles: less memory, other bits.
        host_memory: `auto`, `mapped` (the checkpoint file itself is the host copy), `pinned` or
            `pageable`; without `pin_cpu_memory` it is pageable.

    Raises:
        TypeError: If a flag is not a bool.
        ValueError: If `use_fsdp_inference` meets `dit_layerwise_offload`, or `pin_cpu_memory=False`
            a kind of host memory that is pinned.
    """

    dit_layerwise_offload: bool = True
    use_fsdp_inference: bool = False
    dit_cpu_offload: bool = True
    text_encoder_cpu_offload: bool = True
    image_encoder_cpu_offload: bool = True
    vae_cpu_offload: bool = True
    pin_cpu_memory: bool = True
    text_encoder_layerwise_offload: bool = False
    vae_tiling: bool = False
    host_memory: str = "auto"

    def __post_init__(self) -> None:
        if self.host_memory not in HOST_MEMORY:
            raise ValueError(
                f"host_memory must be one of {', '.join(HOST_MEMORY)}, got {self.host_memory!r}. "
                "Pass host_memory='auto'."
            )
        if self.host_memory in ("mapped", "pinned") and self.pin_cpu_memory is False:
            raise ValueError(
                f"host_memory={self.host_memory!r} is pinned memory, which pin_cpu_memory=False "
                "forbids. Pass host_memory='pageable', or leave pin_cpu_memory on."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "host_memory":
                continue
            if not isinstance(value, bool):
                raise TypeError(
                    f"{field.name} must be True or False, got {value!r}. "
                    f"Pass {field.name}=True or {field.name}=False."
                )
        if self.use_fsdp_inference and self.dit_layerwise_offload:
            raise ValueError(
                "dit_layerwise_offload=True cannot be combined with use_fsdp_inference=True: "
                "FSDP already moves the denoiser's weights layer by layer. "
                "Pass dit_layerwise_offload=False, or leave FSDP off."
            )

    @classmethod
    def from_mapping(cls, flags: Mapping[str, Any]) -> Self:
        """Make one from names and values; an unknown name is a ValueError with its nearest."""
        check_known(flags, [field.name for field in fields(cls)], cls.__name__)
        return cls(**flags)


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
        flow_shift: Shift of the flow schedule; None keeps the checkpoint's scheduler as it is.
        max_sequence_length: Tokens of the prompt that reach the denoiser.

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
    flow_shift: float | None = None
    max_sequence_length: int | None = None

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
        check_known(values, [field.name for field in fields(cls)], cls.__name__)
        return cls(**values)

    def given(self) -> dict[str, Any]:
        """Return the fields that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def merge(self, **overrides: Any) -> Self:
        """Return a copy with `overrides` in place; one that is None leaves its field as it is."""
        check_known(overrides, [field.name for field in fields(self)], type(self).__name__)
        return replace(self, **{k: v for k, v in overrides.items() if v is not None})

    def _check_text(self) -> None:
        if not isinstance(self.negative_prompt, str | None):
            raise TypeError(
                f"negative_prompt must be text, got {self.negative_prompt!r}. "
                'Pass a string such as negative_prompt="blurry".'
            )
        for name in ("image_path", "last_image_path"):
            value = getattr(self, name)
            if not isinstance(value, str | os.PathLike | None) or value == "":
                raise TypeError(
                    f"{name} must be the path of an image file, got {value!r}. "
                    f'Pass {name}="image.png", or leave it out.'
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


_EXAMPLES = {
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
        f"Pass one such as {name}={_EXAMPLES[name]}, or leave it out for the default."
    )
