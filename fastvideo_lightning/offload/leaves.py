"""Leaves: the plain tensors that a tensor consists of.

A plain tensor is its own leaf. A wrapper subclass (quantized weights) yields its inner tensors and
can be built again around others.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

Rebuild = Callable[[Sequence[torch.Tensor]], torch.Tensor]

_PLAIN = (torch.Tensor, nn.Parameter)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's bytes are all that there is to it."""
    return type(tensor) in _PLAIN


def find_leaves(tensor: torch.Tensor, fqn: str) -> list[torch.Tensor]:
    """The plain tensors of ``tensor``, in a fixed order.

    Raises:
        TypeError: the subclass does not tell its inner tensors.
    """
    if is_plain(tensor):
        return [tensor]
    if not hasattr(tensor, "__tensor_flatten__"):
        raise TypeError(
            f"{fqn} is a {type(tensor).__name__}, a tensor subclass that does not tell its inner "
            "tensors (__tensor_flatten__), so its bytes cannot be moved. Use CPUExecution or "
            "Resident for the component that holds it."
        )
    names, _ = tensor.__tensor_flatten__()
    return [leaf for name in names for leaf in find_leaves(getattr(tensor, name), f"{fqn}.{name}")]


def addresses_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Where the leaves of a tensor lie."""
    if is_plain(tensor):
        return (tensor.data_ptr(),)
    return tuple(leaf.data_ptr() for leaf in find_leaves(tensor, ""))


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same bits."""
    flat, flat_other = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(flat, flat_other)


def rebuild(like: torch.Tensor, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    """A tensor as ``like``, over other leaves; a Parameter where ``like`` is one."""
    built = _rebuild(like, list(leaves))
    if isinstance(like, nn.Parameter):
        return nn.Parameter(built, requires_grad=like.requires_grad)
    return built


def _rebuild(like: torch.Tensor, leaves: list[torch.Tensor]) -> torch.Tensor:
    if is_plain(like):
        return leaves.pop(0)
    names, context = like.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = {name: _rebuild(getattr(like, name), leaves) for name in names}
    built: torch.Tensor = type(like).__tensor_unflatten__(  # type: ignore[attr-defined]
        inner, context, like.shape, like.stride()
    )
    return built
