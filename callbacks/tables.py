"""Embedding tables that stay on the host: a call reads a few rows of millions."""

from collections.abc import Mapping

import torch
from torch import nn

from fastvideo_lightning.offload.handles import Handle
from fastvideo_lightning.offload.hooks import hook_lookup
from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.embeddings import is_table
from fastvideo_lightning.offload.tensors.sources import WeightSource, find_source


def split_tables(
    bindings: list[TensorBinding],
    sources: Mapping[str, WeightSource],
    device: torch.device,
    *,
    larger_than: int,
) -> tuple[list[TensorBinding], list[TensorBinding]]:
    """Tell the tables of embeddings that are larger than so many bytes from all else.

    A table that something else uses too, such as a tied output layer, is no table.

    Returns:
        The tables, and the rest.
    """
    tables = [
        binding
        for binding in bindings
        if is_table(binding) and size_bytes(binding, sources, device) > larger_than
    ]
    return tables, [binding for binding in bindings if binding not in tables]


def hook_tables(tables: list[TensorBinding], device: torch.device) -> list[Handle]:
    """Let the tables' modules look up on the CPU and hand the rows to the device."""
    names = {place.owner: table.fqn for table in tables for place in table.places}
    return [
        handle
        for owner, fqn in names.items()
        if isinstance(owner, nn.Embedding)
        for handle in hook_lookup(owner, fqn, device)
    ]


def size_bytes(
    binding: TensorBinding, sources: Mapping[str, WeightSource], device: torch.device
) -> int:
    """Bytes of a tensor in the dtype that it runs in."""
    if not binding.tensor.is_meta:
        return binding.tensor.numel() * binding.tensor.element_size()
    source = find_source(binding, sources)
    return source.shape.numel() * source.dtype_on(device).itemsize
