"""Leaves: the plain tensors that a tensor consists of.

A plain tensor is its own leaf. A wrapper subclass (torchao's quantized weights) yields its inner
tensors and can be built again around others. A parameter of a class of its own whose bytes are all
that it moves (GGUF's) is its own leaf too, and is built again with its attributes.
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
    if is_plain(tensor) or _is_own_leaf(tensor):
        return [tensor]
    if not hasattr(tensor, "__tensor_flatten__"):
        raise TypeError(
            f"{fqn} is a {type(tensor).__name__}, a tensor subclass that does not tell its inner "
            "tensors (__tensor_flatten__), so its bytes cannot be moved. Use CPUExecution for "
            "the component that holds it, or load it without this quantization or with torchao's "
            "(dtype='fp8')."
        )
    names, _ = tensor.__tensor_flatten__()
    return [leaf for name in names for leaf in find_leaves(getattr(tensor, name), f"{fqn}.{name}")]


def _is_own_leaf(tensor: torch.Tensor) -> bool:
    """Whether a parameter's class adds nothing to its bytes but what is no tensor."""
    if not issubclass(type(tensor), nn.Parameter) or hasattr(tensor, "__tensor_flatten__"):
        return False
    return not any(_holds_tensor(value) for value in vars(tensor).values())


def _holds_tensor(value: object) -> bool:
    inside = vars(value).values() if hasattr(value, "__dict__") else ()
    return any(isinstance(part, torch.Tensor) for part in (value, *inside))


def addresses_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Where the leaves of a tensor lie."""
    if is_plain(tensor) or not hasattr(tensor, "__tensor_flatten__"):
        return (tensor.data_ptr(),)
    return tuple(leaf.data_ptr() for leaf in find_leaves(tensor, ""))


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same bits."""
    flat, flat_other = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(flat, flat_other)


def rebuild(like: torch.Tensor, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    """A tensor as ``like``, over other leaves; a Parameter where ``like`` is one."""
    if not is_plain(like) and not hasattr(like, "__tensor_flatten__"):
        own: torch.Tensor = torch.Tensor._make_subclass(type(like), leaves[0], like.requires_grad)
        vars(own).update(vars(like))
        return own
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
