"""A diffusers pipeline that computes where it is told, whatever device its weights wait on.

Beside it: modular pipelines, told as others are; safety checkers, which a pipeline brings to the
device by itself; the attention backend of one module's videos, where diffusers has one for the
whole process.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from operator import length_hint
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.adapter_tensors import ConvertsWhole
from fastvideo_lightning.modules.lora import LoadsByModel
from fastvideo_lightning.modules.roles import Role, role_of

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


# A pipeline of diffusers or its class, modular or not.
PipelineOrClass = Any


def is_modular(pipeline: PipelineOrClass) -> bool:
    """Whether a pipeline is put together from blocks."""
    kind = pipeline if inspect.isclass(pipeline) else type(pipeline)
    return any("default_blocks_name" in vars(base) for base in kind.__mro__)


def blocks_of(pipeline: PipelineOrClass) -> Any:
    """Return the blocks of a modular pipeline; those that its class has by default."""
    made: Any = pipeline() if inspect.isclass(pipeline) else pipeline
    return made.blocks


def call_parameters(pipeline: PipelineOrClass) -> Mapping[str, inspect.Parameter]:
    """Return what a pipeline's call takes; of a modular one, what its blocks take."""
    if not is_modular(pipeline):
        return inspect.signature(pipeline.__call__).parameters
    blocks = blocks_of(pipeline)
    made = {output.name for output in blocks.intermediate_outputs}
    parameters = {}
    for taken in blocks.inputs:
        # What one block needs another may make: only the rest has to be given.
        needed = taken.required and taken.default is None and taken.name not in made
        default = inspect.Parameter.empty if needed else taken.default
        if taken.name:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters[taken.name] = inspect.Parameter(taken.name, kind, default=default)
    return parameters


def hide_bars(blocks: Any) -> None:
    """Turn the progress bars of blocks off, however deep they lie."""
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    for block in blocks.sub_blocks.values():
        hide_bars(block)


class ReturnsOutputs:
    """Mixed into a modular pipeline: its call returns what its last blocks make, by name."""

    def __call__(self, **inputs: Any) -> Any:
        """Run the blocks."""
        names = [output.name for output in blocks_of(self).outputs]
        return super().__call__(output=names, **inputs)  # type: ignore[misc]


_log = logging.getLogger(__name__)


def is_guard(model: nn.Module) -> bool:
    """Whether a model is one that its pipeline places."""
    return role_of(type(model)) is Role.GUARD


def send_guards_back(pipeline: Pipeline) -> None:
    """Bring a pipeline's safety checkers to the host."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module) and is_guard(component):
            component.to(torch.device("cpu"))


@contextmanager
def guards_on_cpu(pipeline: Pipeline) -> Iterator[None]:
    """Have the safety checkers on the host again when a call is over, whatever became of it."""
    try:
        yield
    finally:
        send_guards_back(pipeline)


@cache
def tell_of_guard(name: str, device: torch.device) -> None:
    """Say once that no flag is for a safety checker, where that matters."""
    if device.type != "cpu":
        _log.info(
            "%s comes to the GPU for its checks alone, by the pipeline itself: no offload flag is "
            "for it, and no plan counts it.",
            name,
        )
