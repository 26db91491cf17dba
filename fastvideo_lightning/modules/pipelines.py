"""A diffusers pipeline that computes where it is told, whatever device its weights wait on."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

# A diffusers pipeline. What one holds differs by class, so diffusers has no types for it.
Pipeline = Any


class _Placed:
    """Mixed into a pipeline class: the execution device is given, not derived from the weights."""

    execution_device: torch.device

    @property
    def _execution_device(self) -> torch.device:
        return self.execution_device


@cache
def _placed_class(pipeline_class: Any) -> Any:
    # The same name and module as diffusers' own: model_index.json and type checks go by them.
    names = {"__module__": pipeline_class.__module__, "__doc__": pipeline_class.__doc__}
    return type(pipeline_class.__name__, (_Placed, pipeline_class), names)


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
    placed.set_progress_bar_config(disable=True)  # the callbacks show progress
    return placed


@contextmanager
def guided(pipeline: Pipeline, guidance_scale: float | None) -> Iterator[None]:
    """Run with the strength of the pipeline's guider, where it has one, and put it back."""
    guider = getattr(pipeline, "guider", None)
    if guider is None or guidance_scale is None:
        yield
        return
    pipeline.guider = guider.new(guidance_scale=guidance_scale)
    try:
        yield
    finally:
        pipeline.guider = guider
