"""A module for any diffusers pipeline that returns frames or pictures, by its call's signature."""

import logging
from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.base import VideoModule, family_of
from fastvideo_lightning.modules.catalog import makes_video
from fastvideo_lightning.modules.media import check_media, load_media
from fastvideo_lightning.modules.pipelines import GUIDERS
from fastvideo_lightning.modules.signature import CallSignature

# These are used around the call, not in it.
_AROUND = {"seed", "scheduler", "flow_shift", "pipeline_arguments"}
_DEFAULTS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "fps")
_DEFAULT_FPS = 24
_log = logging.getLogger(__name__)


@family_of()
class GenericModule(VideoModule):
    """Calls a pipeline with those settings that its signature takes.

    Defaults are the pipeline's own. What has no field in `SamplingParams` is passed by
    `pipeline_arguments`.
    """

    def family_defaults(self) -> SamplingParams:
        """Read the defaults off the signature of the pipeline's call."""
        values: dict[str, Any] = {"fps": _DEFAULT_FPS}
        for name in _DEFAULTS:
            default = self.signature.default_of(name)
            if isinstance(default, int | float):
                values[name] = round(default) if name == "fps" else default
        return SamplingParams(**values)

    def check_sampling(self, params: SamplingParams) -> None:
        """Refuse a setting that the pipeline has no argument for, and a missing one."""
        name, signature = type(self.pipeline).__name__, self.signature
        defaults = self.sampling_defaults.given()
        for setting in params.given().keys() - defaults.keys() - _AROUND:
            if signature.argument_for(setting) is None and not self._is_guided(setting):
                raise ValueError(
                    f"{name} has no use for {setting}, got {getattr(params, setting)!r}. "
                    "Leave it out."
                )
        further = dict(params.pipeline_arguments or {})
        signature.check_further(further, set(params.given()), name)
        for argument, value in further.items():
            check_media(argument, value)

    def check_complete(self, params: SamplingParams) -> None:
        """Refuse to begin without what the pipeline's call needs."""
        given = {self.signature.argument_for(setting) for setting in params.given()}
        arguments = {*(params.pipeline_arguments or {}), *(a for a in given if a is not None)}
        self.signature.check_complete(arguments, type(self.pipeline).__name__)

    @property
    def needs_image(self) -> bool:
        """Whether the pipeline's call needs a picture."""
        return self.signature.needs("image_path", type(self.pipeline).__name__)

    def call_arguments(self, params: SamplingParams) -> dict[str, Any]:
        """Pass on what the pipeline's call takes."""
        arguments = {}
        for setting, value in params.given().items():
            argument = self.signature.argument_for(setting)
            if setting not in _AROUND and argument is not None:
                arguments[argument] = load_media(value) if setting.endswith("_path") else value
        further = params.pipeline_arguments or {}
        return arguments | {name: load_media(value) for name, value in further.items()}

    def prompt_arguments(self, prompt: str) -> dict[str, Any]:
        """Pass the prompt where the pipeline reads one."""
        if self.signature.takes("prompt"):
            return {"prompt": prompt}
        _log.info("%s reads no prompt: it only names the file.", type(self.pipeline).__name__)
        return {}

    @property
    def file_suffix(self) -> str:
        """What a file of what the pipeline makes ends in: `.mp4`, or `.png` for a picture."""
        return ".mp4" if makes_video(self._pipeline) else ".png"

    @property
    def signature(self) -> CallSignature:
        """What the pipeline's call takes."""
        return CallSignature(self._pipeline)

    def _is_guided(self, setting: str) -> bool:
        return hasattr(self._pipeline, GUIDERS.get(setting, setting))
