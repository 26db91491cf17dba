"""What a component allocates when it is called: its forward on meta, each tensor noted.

Shapes flow through diffusers' own code, without a number in them, in a copy of a few blocks. Two
operations are composed of others on meta but are one kernel on CUDA: there they are taken for that.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastvideo_lightning.plan.allocator import CachingAllocator


@dataclass(frozen=True)
class Allocations:
    """What the tensors of some calls take.

    Attributes:
        allocated_bytes: The most that is alive at once.
        reserved_bytes: What the caching allocator holds for them.
    """

    allocated_bytes: int
    reserved_bytes: int


def count_allocations(call: Callable[[], object], known: Sequence[torch.Tensor]) -> Allocations:
    """Count what a call on meta would allocate on a GPU.

    Args:
        call: Computes on meta.
        known: Weights and buffers, which are not counted.
    """
    allocator = CachingAllocator()
    with torch.no_grad(), _Noting(allocator, known), _AsOnCuda():
        call()
    return Allocations(allocator.peak_bytes, allocator.reserved_bytes)


class _Noting(TorchDispatchMode):
    """Tells an allocator of each storage that comes and goes."""

    def __init__(self, allocator: CachingAllocator, known: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._allocator = allocator
        self._seen = {_key(tensor) for tensor in known}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor)
        return found

    def _note(self, tensor: torch.Tensor) -> None:
        key = _key(tensor)
        storage = tensor.untyped_storage()
        if key in self._seen or not storage.nbytes():
            return
        self._seen.add(key)
        block = self._allocator.take(storage.nbytes())

        def forget() -> None:
            self._seen.discard(key)
            self._allocator.give_back(block)

        weakref.finalize(storage, forget)


class _AsOnCuda(TorchFunctionMode):
    """Attention and RMS norms allocate what their kernels on CUDA do."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rms_norm, torch.nn.functional.rms_norm):
            rows = args[0].new_empty(args[0].shape[:-1], dtype=torch.float32)
            found = torch.empty_like(args[0])
            del rows
            return found
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(*args, **{k: v for k, v in kwargs.items() if k in _QUERY_KEY_VALUE})
        return func(*args, **kwargs)


_QUERY_KEY_VALUE = ("query", "key", "value")


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    """Shapes are [batch, heads, tokens, width of a head]."""
    batch, heads, tokens, _width = query.shape
    sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    found = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
    del sums
    return found


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
