"""A diffusers pipeline that computes where it is told, whatever device its weights wait on."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from operator import length_hint
from typing import Any

import torch

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.model_lora import LoadsByModel
from fastvideo_lightning.modules.modular import ReturnsOutputs, hide_bars, is_modular

# A diffusers pipeline. What one holds differs by class, so diffusers has no types for it.
Pipeline = Any


class _Placed:
    """Mixed into a pipeline class: the execution device is given, not derived from the weights.

    Attributes:
        execution_device: Where the pipeline computes.
        bar_steps: Steps of the loop that it began last, as it told its own bar; 0 before the first.
    """

    execution_device: torch.device
    bar_steps: int = 0

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """Note how many steps the loop has that begins; the bar itself is hidden."""
        self.bar_steps = length_hint(iterable, 0) if total is None else total
        return super().progress_bar(iterable, total)  # type: ignore[misc]

    @property
    def _execution_device(self) -> torch.device:
        return self.execution_device


@cache
def _placed_class(pipeline_class: Any) -> Any:
    # The same name and module as diffusers' own: model_index.json and type checks go by them.
    names = {"__module__": pipeline_class.__module__, "__doc__": pipeline_class.__doc__}
    mixed: list[type] = [_Placed]
    if is_modular(pipeline_class):
        mixed.append(ReturnsOutputs)
    loads = [] if hasattr(pipeline_class, "load_lora_weights") else [LoadsByModel]
    return type(pipeline_class.__name__, (*mixed, pipeline_class, *loads), names)


def place_pipeline(pipeline: Pipeline, device: torch.device) -> Pipeline:
    """Return a pipeline over the same components whose execution device is `device`.

    It is a shallow copy with another class: the caller's pipeline stays as it is, and whatever was
    set on it after construction comes along, which calling the constructor again would lose.
    """
    placed = copy.copy(pipeline)
    if not isinstance(pipeline, _Placed):
        kind: Any = type(pipeline)
        placed.__class__ = _placed_class(kind)
    placed.execution_device = device
    if is_modular(placed):
        placed._blocks = copy.deepcopy(placed._blocks)  # what is set on them stays ours
        hide_bars(placed._blocks)
    placed.set_progress_bar_config(disable=True)  # the callbacks show progress
    return placed


# The components of a pipeline that guide, by the setting that is their strength.
GUIDERS = {"guidance_scale": "guider", "guidance_scale_2": "guider_2"}


@contextmanager
def guided(pipeline: Pipeline, params: SamplingParams) -> Iterator[None]:
    """Run with the strengths of the pipeline's guiders, where it has any, and put them back."""
    before = {}
    for setting, name in GUIDERS.items():
        guider, strength = getattr(pipeline, name, None), getattr(params, setting)
        if guider is not None and strength is not None:
            before[name] = guider
            setattr(pipeline, name, guider.new(guidance_scale=strength))
    try:
        yield
    finally:
        for name, guider in before.items():
            setattr(pipeline, name, guider)
