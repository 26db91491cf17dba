"""What a pipeline's call takes, under our names for it, and what it must be given besides."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from fastvideo_lightning.config import OF_DIFFUSERS, SamplingParams, nearest_name
from fastvideo_lightning.modules.pipelines import Pipeline, call_parameters

# One argument of each group is needed: the default is None, and the call fails with it.
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "AnimateDiffControlNetPipeline": (("conditioning_frames",),),
    "AnimateDiffSparseControlNetPipeline": (("conditioning_frames",),),
    "AnimateDiffVideoToVideoControlNetPipeline": (("video", "latents"), ("conditioning_frames",)),
    "AnimateDiffVideoToVideoPipeline": (("video", "latents"),),
    "CogVideoXFunControlPipeline": (("control_video", "control_video_latents"),),
    "CogVideoXVideoToVideoPipeline": (("video", "latents"),),
    "Cosmos2VideoToWorldPipeline": (("image", "video"),),
    "CosmosVideoToWorldPipeline": (("image", "video"),),
    "I2VGenXLPipeline": (("image",),),
    "LTX2DFRTemporalRefinePipeline": (
        ("latents",),
        ("keyframes_latents",),
        ("keyframe_positions",),
        ("audio_latents",),
    ),
    "LTX2ImageToVideoPipeline": (("image", "latents"),),
    "LTX2LatentUpsamplePipeline": (("video", "latents"),),
    "LTXImageToVideoPipeline": (("image", "latents"),),
    "LTXLatentUpsamplePipeline": (("video", "latents"),),
    "VideoToVideoSDPipeline": (("video", "latents"),),
    "WanVideoToVideoPipeline": (("video", "latents"),),
}


def needed_inputs(pipeline_class: str) -> tuple[tuple[str, ...], ...]:
    """Return groups of arguments of which a pipeline needs one each, by the name of its class."""
    return _NEEDED.get(pipeline_class, ())


# What pipelines call a setting, by our name for it; the other settings bear our name.
_SPELLINGS = {
    "image_path": ("image", "cond_image"),
    "last_image_path": ("last_image",),
    "video_path": ("video",),
    "num_frames": ("num_frames", "frames", "video_length"),
    "fps": ("frame_rate", "fps"),
}
_OURS = {"self", "prompt", *OF_DIFFUSERS}
# What pipelines call the number of results that they make at once.
_SEVERAL = re.compile(r"num_\w+_per_prompt")
_EXAMPLES = {
    "image_path": "'image.png'",
    "last_image_path": "'last.png'",
    "video_path": "'video.mp4'",
}


class CallSignature:
    """The parameters of a pipeline's call.

    Args:
        pipeline: A pipeline or its class.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        parameters = call_parameters(pipeline)
        self._parameters = {n: p for n, p in parameters.items() if p.kind not in kinds}

    def argument_for(self, setting: str) -> str | None:
        """Return what the pipeline calls a `SamplingParams` field, or None if it takes no such."""
        spellings = _SPELLINGS.get(setting, (setting,))
        return next((name for name in spellings if name in self._parameters), None)

    def default_of(self, setting: str) -> Any:
        """Return the default of a `SamplingParams` field, or None where there is none."""
        argument = self.argument_for(setting)
        default = None if argument is None else self._parameters[argument].default
        return None if default is inspect.Parameter.empty else default

    def takes(self, argument: str) -> bool:
        """Whether the call has an argument of that name."""
        return argument in self._parameters

    def check_complete(self, arguments: set[str], name: str) -> None:
        """Raise ValueError for an argument that the call cannot do without and that is missing."""
        for group in self._needed(name):
            if arguments.isdisjoint(group):
                setting = _setting_of(group[0])
                further = f"pipeline_arguments={{{group[0]!r}: ...}}"
                how = _example(setting) if setting else further
                raise ValueError(f"{name} needs {' or '.join(group)}. Pass {how}.")

    def needs(self, setting: str, name: str) -> bool:
        """Whether the call of the pipeline with that name does nothing without a setting."""
        argument = self.argument_for(setting)
        return any(argument in group for group in self._needed(name))

    def _needed(self, name: str) -> list[tuple[str, ...]]:
        """Return groups of arguments of which one each is needed."""
        required = [
            (argument,)
            for argument, parameter in self._parameters.items()
            if parameter.default is parameter.empty and argument not in _OURS
        ]
        return [*required, *needed_inputs(name)]

    def check_further(self, further: Mapping[str, Any], given: set[str], name: str) -> None:
        """Raise ValueError for a name that cannot stand in `pipeline_arguments`.

        Pictures and videos can, as tensors or lists, where no path was given.

        Args:
            further: What stands there.
            given: The fields of `SamplingParams` that have a value.
            name: The pipeline's, for messages.
        """
        for argument in sorted(further):
            if argument in OF_DIFFUSERS:
                how = OF_DIFFUSERS[argument]
                raise ValueError(f"{argument} cannot be in pipeline_arguments. {how}")
            if argument not in self._parameters:
                near = nearest_name(argument, set(self._parameters) - _OURS)
                hint = f"Did you mean {near}?" if near else "Leave it out."
                raise ValueError(f"{name} takes no {argument}. {hint}")
            if _SEVERAL.fullmatch(argument) and further[argument] not in (None, 1):
                raise ValueError(
                    f"{argument} must be 1, got {further[argument]!r}: one call gives one video or "
                    "picture, and the others would be lost. Leave it out, and ask for each with a "
                    "seed of its own."
                )
            setting = _setting_of(argument)
            is_media = setting in _EXAMPLES and setting not in given
            if argument in _OURS or (setting is not None and not is_media):
                how = f"Pass {_example(setting)}" if setting else "Leave it out"
                raise ValueError(f"{argument} cannot be in pipeline_arguments. {how}.")


def _setting_of(argument: str) -> str | None:
    """Return the `SamplingParams` field that an argument is filled from, or None."""
    for setting, spellings in _SPELLINGS.items():
        if argument in spellings:
            return setting
    return argument if argument in SamplingParams.__dataclass_fields__ else None


def _example(setting: str) -> str:
    return f"{setting}={_EXAMPLES.get(setting, '...')}"
