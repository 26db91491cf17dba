"""A module for any diffusers video pipeline that no family file knows."""

import inspect
from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.base import VideoModule
from fastvideo_lightning.modules.sampling import load_rgb

# The call's argument, by the field it comes from; the other fields bear the argument's name.
_ARGUMENTS = {"image_path": "image", "last_image_path": "last_image", "fps": "frame_rate"}
_NOT_PASSED = {"seed", "flow_shift"}
_DEFAULT_FPS = 24


class GenericModule(VideoModule):
    """Calls a pipeline with those settings that its signature takes.

    Defaults are the pipeline's own.
    """

    def family_defaults(self) -> SamplingParams:
        """Read the defaults off the signature of the pipeline's call."""
        parameters = self._call_parameters()
        values: dict[str, Any] = {"fps": _DEFAULT_FPS, "num_inference_steps": 50}
        for name in ("height", "width", "num_frames", "num_inference_steps", "guidance_scale"):
            default = parameters[name].default if name in parameters else None
            if isinstance(default, int | float):
                values[name] = default
        if "frame_rate" in parameters and isinstance(parameters["frame_rate"].default, int | float):
            values["fps"] = round(parameters["frame_rate"].default)
        return SamplingParams(**values)

    def check_sampling(self, params: SamplingParams) -> None:
        """Refuse a setting that this pipeline has no argument for, and a missing image."""
        parameters = self._call_parameters()
        defaults = self.sampling_defaults.given()
        for name in params.given().keys() - defaults.keys() - _NOT_PASSED:
            if _ARGUMENTS.get(name, name) not in parameters:
                raise ValueError(
                    f"{type(self.pipeline).__name__} has no use for {name}, got "
                    f"{getattr(params, name)!r}. Leave it out."
                )
        image = parameters.get("image")
        if image is not None and image.default is image.empty and params.image_path is None:
            raise ValueError(
                f"{type(self.pipeline).__name__} needs an image. Pass image_path='image.png'."
            )

    def call_arguments(self, params: SamplingParams) -> dict[str, Any]:
        """Pass on what the pipeline's call takes."""
        parameters = self._call_parameters()
        arguments = {}
        for name, value in params.given().items():
            argument = _ARGUMENTS.get(name, name)
            if name not in _NOT_PASSED and argument in parameters:
                arguments[argument] = load_rgb(value) if name.endswith("image_path") else value
        return arguments

    def _call_parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.pipeline.__call__).parameters)
