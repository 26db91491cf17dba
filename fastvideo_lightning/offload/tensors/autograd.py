"""Calls that autograd records: their backward reads the weights again, after the call is over.

Note [Backward through streamed blocks]
A slot has other bytes by the time a backward comes. In a recorded call a unit's module therefore
sees a copy of its slot, made on the device, which autograd keeps for as long as the backward needs
it, and frees then. Activation checkpointing block by block keeps that to one block at a time: the
block is called again during the backward, brings its weights again, and the blocks come in the
opposite order. A parameter that is trained stays on the host, the object that the optimizer has;
what the module sees in its place hands the gradient back to it (``route_gradient_to``).
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._pytree import tree_any

from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.layout import SlabLayout


@contextmanager
def lasting() -> Iterator[None]:
    """Surrounds the making of tensors that outlive the call, whatever mode the caller is in.

    A tensor made under ``torch.inference_mode`` has no version to compare, and a parameter made
    there wants no gradient, which changes the kernel that a product chooses.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def outside_transforms() -> AbstractContextManager[object]:
    """Surrounds the engine's own work in a call that `torch.func` transforms.

    Within a transform, copying into a slot would count as a write to a captured tensor.
    """
    if torch._C._functorch.maybe_current_level() is None:
        return nullcontext()
    cleared: AbstractContextManager[object] = temporarily_clear_interpreter_stack()
    return cleared


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


def kept_views(layout: SlabLayout, memory: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in a copy of a slot; for autograd, a write to one is no write to the others."""
    return [view.data for view in layout.views(memory)]


def route_gradient_to(host: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """``shown``; where ``host`` is trained, the gradient goes to ``host``."""
    if not host.requires_grad:
        return shown
    back: torch.Tensor = _WayBack.apply(host, shown.detach())  # type: ignore[no-untyped-call]
    return back


class _WayBack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, host: torch.Tensor, shown: torch.Tensor
    ) -> torch.Tensor:
        return shown.data  # no view of another tensor: a forward may write it

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        return gradient.cpu(), None
