"""Conversions of an offloaded module: what changes nothing passes, all else is refused."""

from collections.abc import Callable
from itertools import chain

import torch
from torch import nn

Conversion = Callable[[torch.Tensor], torch.Tensor]
"""What ``nn.Module._apply`` is called with."""


def check_unchanged(convert: Conversion, module: nn.Module, fqn: str) -> None:
    """Raise RuntimeError if a conversion would change a weight of ``module``.

    Pipelines cast a component to the dtype that it has already, for safety: that passes.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if _changes(convert, tensor):
            raise RuntimeError(
                f"{fqn or type(module).__name__} is being offloaded, so its weights cannot be "
                "moved or cast (.to(), .half(), .cuda(), ...). Detach the callback first "
                "(`callback.detach()`, or `generator.close()`), or choose the dtype when the model "
                "is loaded."
            )


def _changes(convert: Conversion, tensor: torch.Tensor) -> bool:
    """Whether a conversion would move, cast or share a tensor; tried on an empty one like it."""
    like = torch.empty((0,) * tensor.dim(), dtype=tensor.dtype, device=tensor.device)
    return convert(like) is not like or (not tensor.is_shared() and like.is_shared())
