"""The names that weights are stored by, beside those that a model has."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from fastvideo_lightning.checkpoint.building import SPARE_ELEMENTS
from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.weights import StoredTensor

Stored = TypeVar("Stored", StoredTensor, StoredTensor | torch.Tensor)

# What fp8 checkpoints of other programs call the scales of their weights.
_SCALE = re.compile(r"(^|[._])(scale_(weight|input)|(weight|input)_scale(_inv|_2)?|scaled_fp8)$")


def match_names(module: nn.Module, tensors: Mapping[str, Stored]) -> dict[str, Stored] | None:
    """Give every weight of the model its stored tensor; None where the file has other names.

    A tied weight lies in the file under one of its names. A transformers model may be stored with
    or without its own base prefix.

    Raises:
        CheckpointError: If every weight has its tensor, and there are tensors beside.
    """
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    expected = module.state_dict(keep_vars=True)
    for rename in (str, prefix.__add__, lambda name: name.removeprefix(prefix)):
        found = {rename(name): tensor for name, tensor in tensors.items()}
        by_owner = {id(expected[name]): found[name] for name in expected if name in found}
        if all(id(own) in by_owner for own in expected.values()):
            unplaced = find_unplaced(module, found.keys() - expected.keys())
            check_placed(unplaced, type(module).__name__, _paths(tensors.values()))
            return {name: found.get(name, by_owner[id(own)]) for name, own in expected.items()}
    _check_amount(module, tensors)
    return None


def _paths(tensors: Iterable[StoredTensor | torch.Tensor]) -> set[Path]:
    return {tensor.path for tensor in tensors if isinstance(tensor, StoredTensor)}


def lacks_weights(
    module: nn.Module, found: Mapping[str, object], tensors: Mapping[str, StoredTensor]
) -> CheckpointError:
    """Return the error that names a weight that a file lacks."""
    missing = sorted(module.state_dict().keys() - found.keys())
    where = ", ".join(sorted(map(str, _paths(tensors.values())))[:2])
    return CheckpointError(
        f"{where} lacks {len(missing)} weights of {type(module).__name__}, such as "
        f"{missing[0]!r}. Weights and config.json are not of one model."
    )


def _check_amount(module: nn.Module, tensors: Mapping[str, StoredTensor | torch.Tensor]) -> None:
    """Refuse a model that is much larger than what is stored, before a library makes it whole."""
    needed = sum({id(own): own.numel() for own in module.parameters()}.values())
    stored = sum(prod(tensor.shape) for tensor in tensors.values())
    if needed <= 2 * stored + SPARE_ELEMENTS // 4:
        return
    name = min(module.state_dict().keys() - tensors.keys())
    where = ", ".join(sorted(map(str, _paths(tensors.values())))[:2])
    raise CheckpointError(
        f"{where or type(module).__name__} has {stored} numbers, and {type(module).__name__} needs "
        f"{needed}: it lacks {name!r}. Weights and config.json are not of one model."
    )


def find_unplaced(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Of names that are not weights of a model those that it does not know either.

    Its class may say that it ignores them, and tables that it computes were once stored.
    """
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    computed = {name for name, _ in module.named_buffers()}
    return sorted(
        name
        for name in names
        if name not in computed and not any(re.search(pattern, name) for pattern in ignored)
    )


def check_placed(names: Sequence[str], model: str, paths: Collection[Path]) -> None:
    """Raise CheckpointError, naming the first of them, where weights have no place in a model.

    Args:
        names: Stored tensors without a place.
        model: The class that has none.
        paths: Files or the folder where they lie.
    """
    if not names:
        return
    where = ", ".join(sorted(map(str, paths))[:2])
    scales = [name for name in names if _SCALE.search(name)]
    if scales:
        raise CheckpointError(
            f"{where}: {len(scales)} scales of fp8 weights, such as {scales[0]!r}, have no place "
            f"in {model}, and the weights are other numbers without them. Pass the checkpoint in "
            "bf16 or fp16; dtype='fp8' quantizes that."
        )
    more = f" {len(names)} tensors, such as" if len(names) > 1 else ""
    raise CheckpointError(
        f"{where}:{more} {names[0]!r}, which {model} has no place for. "
        "Weights and config.json are not of one model: download the checkpoint again."
    )
