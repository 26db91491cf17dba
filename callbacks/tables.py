"""Embedding tables that stay on the host: a call reads a few rows of millions."""

from collections.abc import Mapping

import torch
from torch import nn

from fastvideo_lightning.offload.bindings import TensorBinding
from fastvideo_lightning.offload.handles import Handle
from fastvideo_lightning.offload.hooks import hook_calls
from fastvideo_lightning.offload.reading import find_source
from fastvideo_lightning.offload.source import WeightSource


def split_tables(
    bindings: list[TensorBinding],
    sources: Mapping[str, WeightSource],
    device: torch.device,
    *,
    larger_than: int,
) -> tuple[list[TensorBinding], list[TensorBinding]]:
    """Tell the tables of ``nn.Embedding`` that are larger than so many bytes from all else.

    A table that something else uses too, such as a tied output layer, is no table.

    Returns:
        The tables, and the rest.
    """
    tables = [
        binding
        for binding in bindings
        if all(type(place.owner) is nn.Embedding for place in binding.places)
        and size_bytes(binding, sources, device) > larger_than
    ]
    return tables, [binding for binding in bindings if binding not in tables]


def hook_tables(tables: list[TensorBinding], device: torch.device) -> list[Handle]:
    """Let the tables' modules look up on the CPU and hand the rows to the device."""
    owners = {id(place.owner): place.owner for table in tables for place in table.places}
    names = {id(place.owner): table.fqn for table in tables for place in table.places}
    return [
        handle
        for key, owner in owners.items()
        for handle in hook_calls(
            owner, names[key], inputs_to=torch.device("cpu"), outputs_to=device
        )
    ]


def size_bytes(
    binding: TensorBinding, sources: Mapping[str, WeightSource], device: torch.device
) -> int:
    """Bytes of a tensor in the dtype that it runs in."""
    if not binding.tensor.is_meta:
        return binding.tensor.numel() * binding.tensor.element_size()
    source = find_source(binding, sources)
    return source.shape.numel() * source.dtype_on(device).itemsize
