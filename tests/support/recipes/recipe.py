"""How a small random pipeline of a diffusers class is built, and called."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from fastvideo_lightning.modules.roles import stays_fp32

PROMPT = "a red circle moves right"
RECIPES: dict[str, "Recipe"] = {}
PICTURES: dict[str, "Recipe"] = {}
SMALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}

# Wan, and one unlike it: of another time, with a UNet and two text encoders.
TYPICAL = ("WanPipeline", "AnimateDiffSDXLPipeline")


@dataclass(frozen=True)
class Recipe:
    """One pipeline and one call of it.

    Attributes:
        build: Makes the pipeline.
        sampling: Fields of our `SamplingParams`; `"image"`, `"last_image"` and `"video"` stand for
            the paths of files that the test writes.
        spelling: What diffusers calls a field that bears another name there; None: nothing takes
            it.
    """

    build: Callable[[], DiffusionPipeline]
    sampling: dict[str, Any] = field(default_factory=dict)
    spelling: dict[str, str | None] = field(default_factory=dict)

    def ours(self, media: dict[str, Path]) -> dict[str, Any]:
        """The sampling fields, with paths."""
        values = {name: _path(value, media) for name, value in self.sampling.items()}
        further = values.get("pipeline_arguments")
        if further is not None:
            values["pipeline_arguments"] = {n: _path(v, media) for n, v in further.items()}
        return values

    def plain(self, media: dict[str, Path], load: Callable[[Path], Any]) -> dict[str, Any]:
        """The arguments of diffusers' call for the same."""
        values = dict(self.ours(media))
        further = values.pop("pipeline_arguments", {})
        spelling = {
            "image_path": "image",
            "last_image_path": "last_image",
            "video_path": "video",
            "fps": None,
            **self.spelling,
        }
        values = {spelling.get(name, name): value for name, value in values.items()} | further
        values.pop(None, None)
        return {n: load(v) if isinstance(v, Path) else v for n, v in values.items()}


def recipe(
    *names: str,
    spelling: dict[str, str | None] | None = None,
    into: dict[str, Recipe] = RECIPES,
    **sampling: Any,
) -> Callable[[Callable[..., DiffusionPipeline]], Callable[..., DiffusionPipeline]]:
    """Enter a function that builds a pipeline by its class name.

    `sampling` goes over `SMALL`; a field that is None is left out.
    """

    def enter(build: Callable[..., DiffusionPipeline]) -> Callable[..., DiffusionPipeline]:
        merged = {**SMALL, **sampling}
        kept = {name: value for name, value in merged.items() if value is not None}
        for name in names:
            made = (lambda name=name: build(name)) if len(names) > 1 else build
            into[name] = Recipe(made, kept, spelling or {})
        return build

    return enter


def families(names: Iterable[str]) -> list[Any]:
    """Parameters of a test: the names in their order, all but `TYPICAL` marked `exhaustive`."""
    mark = pytest.mark.exhaustive
    return [n if n in TYPICAL else pytest.param(n, marks=mark) for n in sorted(names)]


def as_on_gpu(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Give the models, or copies of them, the dtypes that `dtype="auto"` has on a GPU."""
    for name, model in pipeline.components.items():
        if isinstance(model, nn.Module) and not stays_fp32(type(pipeline).__name__, type(model)):
            kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
            model = copy.deepcopy(model)
            for fqn, tensor in (*model.named_parameters(), *model.named_buffers()):
                if tensor.is_floating_point() and not kept.intersection(fqn.split(".")):
                    tensor.data = tensor.data.bfloat16()
            setattr(pipeline, name, model)
    return pipeline


def _path(value: Any, media: dict[str, Path]) -> Any:
    return media.get(value, value) if isinstance(value, str) else value
