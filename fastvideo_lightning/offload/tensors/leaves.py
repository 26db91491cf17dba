"""Leaves: the plain tensors that a tensor consists of.

A plain tensor is its own leaf. A wrapper subclass (torchao's quantized weights) yields its inner
tensors and can be built again around others. A parameter of a class of its own is a leaf too, and
is built again with its attributes: GGUF's has no more to it. Where an attribute is an object of
tensors (the scales of bitsandbytes' 4 bits), those are leaves behind it, and the object is copied.

Tensors that cannot be found again are refused: those that are attributes of the parameter itself,
and those that the module keeps beside the parameter. bitsandbytes' 8-bit weights have the first
kind until they are first used, and the second kind from then on.
"""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import nn

from fastvideo_lightning.offload.tensors.bindings import TensorBinding

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
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        inner = [(name, getattr(tensor, name)) for name in names]
        return [leaf for name, part in inner for leaf in find_leaves(part, f"{fqn}.{name}")]
    if not issubclass(type(tensor), nn.Parameter) or _has_tensors(tensor):
        raise _refusal(tensor, fqn)
    return [tensor, *(leaf for value in vars(tensor).values() for leaf in _inside(value))]


def leaves_of(binding: TensorBinding) -> list[torch.Tensor]:
    """The plain tensors of what a module registers.

    Raises:
        TypeError: as ``find_leaves``, or the module has tensors of its own beside the parameter.
    """
    tensor = binding.tensor
    leaves = find_leaves(tensor, binding.fqn)
    if leaves[0] is tensor and not is_plain(tensor):
        known = {id(leaf) for leaf in leaves}
        for registration in binding.registrations:
            beside = [
                leaf for value in vars(registration.owner).values() for leaf in _inside(value)
            ]
            if any(id(leaf) not in known for leaf in beside):
                raise _refusal(tensor, binding.fqn)
    return leaves


def _refusal(tensor: torch.Tensor, fqn: str) -> TypeError:
    return TypeError(
        f"{fqn} is a {type(tensor).__name__}, a tensor subclass that does not tell its inner "
        "tensors (__tensor_flatten__), so its bytes cannot be moved. Use CPUExecution for "
        "the component that holds it, or load it without this quantization, with torchao's "
        "(dtype='fp8') or with 4 bits of bitsandbytes'."
    )


def _has_tensors(thing: object) -> bool:
    return any(isinstance(value, torch.Tensor) for value in vars(thing).values())


def _inside(value: object) -> list[torch.Tensor]:
    """The tensors of an object and of objects of its own class in it; none of a module."""
    if isinstance(value, nn.Module | torch.Tensor | type) or not hasattr(value, "__dict__"):
        return []
    found = []
    for part in vars(value).values():
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif type(part) is type(value):
            found += _inside(part)
    return found


def addresses_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Where the leaves of a tensor lie."""
    if is_plain(tensor):
        return (tensor.data_ptr(),)
    return tuple(leaf.data_ptr() for leaf in find_leaves(tensor, ""))


def fill(view: torch.Tensor, leaf: torch.Tensor, *, is_filled: bool) -> None:
    """Copy a leaf's bytes to where it is to lie, unless they are there already."""
    if is_filled:
        flat, flat_other = (
            tensor.detach().reshape(-1).view(torch.uint8) for tensor in (view, leaf)
        )
        if torch.equal(flat, flat_other):
            return
    view.copy_(leaf.detach())


def rebuild(like: torch.Tensor, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    """A tensor as ``like``, over other leaves; a Parameter where ``like`` is one."""
    if not is_plain(like) and not hasattr(like, "__tensor_flatten__"):
        own: torch.Tensor = torch.Tensor._make_subclass(type(like), leaves[0], like.requires_grad)
        rest = list(leaves[1:])
        for name, value in vars(like).items():
            vars(own)[name] = _rebuild_around(value, rest)
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


def _rebuild_around(value: object, leaves: list[torch.Tensor]) -> object:
    """A copy of an object over the next leaves; itself where it has no tensors."""
    if not _inside(value):
        return value
    copied = copy(value)
    for name, part in vars(value).items():
        if isinstance(part, torch.Tensor):
            vars(copied)[name] = leaves.pop(0)
        elif type(part) is type(value):
            vars(copied)[name] = _rebuild_around(part, leaves)
    return copied
