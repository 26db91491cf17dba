"""A diffusers pipeline that computes where it is told, whatever device its weights wait on."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from operator import length_hint
from typing import Any

import torch

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.adapter_tensors import ConvertsWhole
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

    def progress_bar(self, *told: Any, **named: Any) -> Any:
        """Note how many steps the loop has that begins; the bar itself is hidden.

        A class may have a bar with arguments of its own, so they are passed on as they come.
        """
        bar = super().progress_bar  # type: ignore[misc]
        self.bar_steps = _steps_told(bar, told, named)
        return bar(*told, **named)

    @property
    def _execution_device(self) -> torch.device:
        return self.execution_device


def _steps_told(bar: Callable[..., Any], told: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Return how many steps a progress bar is told of; 0 where that is not to be seen."""
    try:
        arguments = inspect.signature(bar).bind(*told, **named).arguments
    except TypeError:  # the bar itself says what it takes
        return 0
    total, iterable = arguments.get("total"), arguments.get("iterable")
    return length_hint(iterable, 0) if total is None else total


@cache
def _placed_class(pipeline_class: Any) -> Any:
    # The same name and module as diffusers' own: model_index.json and type checks go by them.
    names = {"__module__": pipeline_class.__module__, "__doc__": pipeline_class.__doc__}
    mixed: list[type] = [_Placed]
    if is_modular(pipeline_class):
        mixed.append(ReturnsOutputs)
    has_loader = hasattr(pipeline_class, "load_lora_weights")
    loads = [] if has_loader else [LoadsByModel]
    mixed += [ConvertsWhole] if has_loader else []
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
