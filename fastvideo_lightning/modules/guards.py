"""Safety checkers: a pipeline brings its own to the device, and may leave it there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from fastvideo_lightning.modules.pipelines import Pipeline
from fastvideo_lightning.modules.roles import Role, role_of

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
def guards_at_rest(pipeline: Pipeline) -> Iterator[None]:
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
