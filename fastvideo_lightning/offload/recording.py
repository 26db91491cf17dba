"""Calls that autograd records: their backward reads the weights again, long after the call.

Note [Backward through streamed blocks]
A slot has other bytes by the time a backward comes. In a recorded call a unit's module therefore
sees a copy of its slot, made on the device, which autograd keeps for as long as the backward needs
it, and frees then. Activation checkpointing block by block keeps that to one block at a time: the
block is called again during the backward, brings its weights again, and the blocks come in the
opposite order. A parameter that is trained stays on the host, the object that the optimizer has;
what the module sees in its place hands the gradient back to it (``with_way_back``).
"""

from collections.abc import Iterable

import torch
from torch.utils._pytree import tree_any

from fastvideo_lightning.offload.bindings import TensorBinding
from fastvideo_lightning.offload.layout import SlabLayout


def is_recorded(
    bindings: Iterable[TensorBinding], args: tuple[object, ...], kwargs: dict[str, object]
) -> bool:
    """Whether autograd records a call with these arguments of a module with these tensors."""
    if not torch.is_grad_enabled():
        return False
    return any(binding.tensor.requires_grad for binding in bindings) or tree_any(
        lambda leaf: isinstance(leaf, torch.Tensor) and leaf.requires_grad, (args, kwargs)
    )


def in_backward() -> bool:
    """Whether this thread is in a backward: a block that is called now is called again."""
    return torch._C._current_graph_task_id() != -1


def kept_views(layout: SlabLayout, buffer: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of a slot, copied; a write to one is none to the others, which autograd keeps."""
    return [view.data for view in layout.views(buffer[: layout.size_bytes].clone())]


def with_way_back(host: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """``shown``, with its gradient going to ``host`` where that one is trained."""
    if not host.requires_grad:
        return shown
    back: torch.Tensor = _WayBack.apply(host, shown.detach())  # type: ignore[no-untyped-call]
    return back


class _WayBack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, host: torch.Tensor, shown: torch.Tensor
    ) -> torch.Tensor:
        return shown

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        return gradient.cpu(), None
