"""Embedding tables that stay on the host: a call reads a few rows of millions.

Some embedding classes compute more than a lookup: Gemma's scales the rows. That has to happen on
the device, where it gives the device's bits and finds its buffers. So the module computes on the
device, and only the lookup inside of its forward is done on the host.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastvideo_lightning.offload.handles import Call
from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.leaves import is_plain
from fastvideo_lightning.offload.tensors.sources import WeightSource, find_source
from fastvideo_lightning.offload.tensors.transfers import move_inputs, move_tensors

_CPU = torch.device("cpu")
_LOOK_UP: object = functional.embedding


def is_table(binding: TensorBinding) -> bool:
    """Whether embeddings alone use a tensor, by looking up rows.

    A tied output layer multiplies by the whole table; and a subclass may keep a quantized table in
    a form that only its own forward can read.
    """
    owners = [registration.owner for registration in binding.registrations]
    if all(type(owner) is nn.Embedding for owner in owners):
        return True
    is_weight = all(registration.name == "weight" for registration in binding.registrations)
    are_embeddings = all(isinstance(owner, nn.Embedding) for owner in owners)
    return is_weight and are_embeddings and is_plain(binding.tensor)


class HostLookup(TorchFunctionMode):
    """While it is on, an embedding's table on the host looks like one on the device.

    Args:
        owner: the embedding.
        device: where the rows go.
    """

    def __init__(self, owner: nn.Embedding, device: torch.device) -> None:
        super().__init__()
        self.owner = owner
        self.device = device

    def __torch_function__(
        self,
        function: Call,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Look up on the host; bring the table over for whatever else is computed with it."""
        kwargs, table = dict(kwargs or {}), self.owner.weight
        given = [*args, *kwargs.values()]
        if not any(value is table for value in given):
            return function(*args, **kwargs)
        if function is _LOOK_UP:
            moved = move_inputs(args, kwargs, _CPU)
            args, kwargs = moved if moved is not None else (args, kwargs)
            return move_tensors(function(*args, **kwargs), self.device)
        if function is torch.Tensor.device.__get__:
            return self.device
        if getattr(function, "__name__", "") == "__get__":  # its shape, its dtype
            return function(*args, **kwargs)
        whole = table.to(self.device)
        args = tuple(whole if value is table else value for value in args)
        return function(*args, **{k: whole if v is table else v for k, v in kwargs.items()})


def split_tables(
    bindings: list[TensorBinding],
    sources: Mapping[str, WeightSource],
    device: torch.device,
    *,
    larger_than: int,
) -> tuple[list[TensorBinding], list[TensorBinding]]:
    """Tell embedding tables of more than ``larger_than`` bytes from all other tensors.

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


def size_bytes(
    binding: TensorBinding, sources: Mapping[str, WeightSource], device: torch.device
) -> int:
    """Bytes of a tensor in the dtype that it runs in."""
    if not binding.tensor.is_meta:
        return binding.tensor.numel() * binding.tensor.element_size()
    source = find_source(binding, sources)
    return source.shape.numel() * source.dtype_on(device).itemsize
