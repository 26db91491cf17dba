"""Conversions of an offloaded module: what changes nothing passes, all else is refused.

A component that comes in as a whole may be cast besides: pipelines do so around its calls.
"""

from collections.abc import Callable
from itertools import chain

import torch
from torch import nn

Conversion = Callable[[torch.Tensor], torch.Tensor]
"""What ``nn.Module._apply`` is called with."""


def check_unchanged(
    convert: Conversion, module: nn.Module, fqn: str, *, may_cast: bool = False
) -> None:
    """Raise RuntimeError if a conversion would change a weight of ``module``.

    Pipelines cast a component to the dtype that it has already, for safety: that passes.

    Args:
        convert: what would be applied to every weight.
        module: what it would be applied to.
        fqn: its name, for the message.
        may_cast: another dtype on the same device passes too.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if _changes(convert, tensor, may_cast=may_cast):
            raise RuntimeError(
                f"{fqn or type(module).__name__} is being offloaded, so its weights cannot be "
                f"moved{'' if may_cast else ' or cast'} (.to(), .half(), .cuda(), ...). Detach the "
                "callback first (`callback.detach()`, or `generator.close()`), or choose the dtype "
                "when the model is loaded."
            )


def _changes(convert: Conversion, tensor: torch.Tensor, *, may_cast: bool) -> bool:
    """Whether a conversion would move, cast or share a tensor; tried on an empty one like it."""
    like = torch.empty((0,) * tensor.dim(), dtype=tensor.dtype, device=tensor.device)
    converted = convert(like)
    if may_cast and converted.dtype != like.dtype and converted.device == like.device:
        return False
    return converted is not like or (not tensor.is_shared() and like.is_shared())
