"""Brings a call's arguments and results to a device."""

from typing import cast

import torch
from torch import nn
from torch.utils._pytree import tree_any, tree_map


def move_inputs(
    args: tuple[object, ...], kwargs: dict[str, object], device: torch.device
) -> tuple[tuple[object, ...], dict[str, object]] | None:
    """Arguments with their tensors on ``device``; None where they are there already."""
    if not tree_any(lambda leaf: _is_elsewhere(leaf, device), (args, kwargs)):
        return None
    moved = tree_map(lambda leaf: _move_leaf(leaf, device), (args, kwargs))
    return cast("tuple[tuple[object, ...], dict[str, object]]", moved)


def move_tensors(tree: object, device: torch.device) -> object:
    """A result, containers and output objects included, with its tensors on ``device``."""
    return tree_map(lambda leaf: _move_leaf(leaf, device), tree)


def _is_elsewhere(leaf: object, device: torch.device) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device != device


def _move_leaf(leaf: object, device: torch.device) -> object:
    if isinstance(leaf, torch.Tensor):
        return leaf.to(device)
    attributes = getattr(leaf, "__dict__", None)
    if isinstance(leaf, nn.Module) or not attributes:
        return leaf
    if any(isinstance(value, torch.Tensor) for value in attributes.values()):
        # An object that carries tensors, such as the latent distribution of a VAE.
        for name, value in attributes.items():
            if isinstance(value, torch.Tensor | torch.device):
                attributes[name] = value.to(device) if isinstance(value, torch.Tensor) else device
    return leaf
