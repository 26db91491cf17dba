"""Calls that allocate what a call before did: computed once on meta, then repeated.

Note [Repeated calls]
Wan's VAE calls its decoder for each latent frame of each tile, and keeps the last frames of what
each layer was given for the next call. Calls with inputs of one shape, and frames of one shape kept
from before, take the same from the allocator and give the same back, in the same order. The first
of them is computed on meta and noted; the others only repeat in the allocator what was noted. That
is how decoding in tiles is counted in a second or two and not in 25.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from fastvideo_lightning.plan.allocator import Block
from fastvideo_lightning.plan.memory_trace import Notes
from fastvideo_lightning.plan.tape import Dropped, GivenBack, Taken, Tape


@dataclass(frozen=True)
class _Made:
    """A tensor that a call leaves.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        take: Which of the call's takes it lies in.
    """

    shape: torch.Size
    dtype: torch.dtype
    take: int


@dataclass(frozen=True)
class _Call:
    """What a call does to the allocator, and what it leaves: its result and what it keeps."""

    tape: Tape
    result: _Made
    kept: list[Any]


class Repeats:
    """The forward of an encoder or a decoder of Wan's, see Note [Repeated calls].

    Args:
        notes: Where allocations are noted.
        forward: The forward itself.
    """

    def __init__(self, notes: Notes, forward: Callable[..., torch.Tensor]) -> None:
        self._notes = notes
        self._forward = forward
        self._calls: dict[Hashable, _Call] = {}

    def __call__(
        self, x: torch.Tensor, feat_cache: list[Any], feat_idx: list[int], **options: Hashable
    ) -> torch.Tensor:
        """Compute on meta or repeat; ``feat_cache`` has what is kept, before and after."""
        kind = (x.shape, x.dtype, *map(_kind, feat_cache), *sorted(options.items()))
        if kind in self._calls:
            return self._repeat(self._calls[kind], feat_cache)
        blocks = [self._block_of(kept) for kept in feat_cache]
        places = {block: place for place, block in enumerate(blocks) if block is not None}
        with self._notes.recording(places) as tape:
            found = self._forward(x, feat_cache=feat_cache, feat_idx=feat_idx, **options)
        result, *kept = (self._made(value, tape) for value in (found, *feat_cache))
        self._calls[kind] = _Call(tape, result, kept)
        return found

    def _repeat(self, call: _Call, feat_cache: list[Any]) -> torch.Tensor:
        allocator, blocks = self._notes.allocator, list[Block]()
        for event in call.tape.events:
            match event:
                case Taken(size_bytes):
                    blocks.append(allocator.take(size_bytes))
                case GivenBack(take):
                    allocator.give_back(blocks[take])
                case Dropped(place):
                    feat_cache[place] = None

        def make(made: _Made) -> torch.Tensor:
            return self._notes.adopt(made.shape, made.dtype, blocks[made.take])

        feat_cache[:] = [make(kept) if isinstance(kept, _Made) else kept for kept in call.kept]
        return make(call.result)

    def _made(self, value: Any, tape: Tape) -> Any:
        block = self._block_of(value)
        return value if block is None else _Made(value.shape, value.dtype, tape.takes[block])

    def _block_of(self, value: object) -> Block | None:
        return self._notes.block_of(value) if isinstance(value, torch.Tensor) else None


def _kind(kept: object) -> Hashable:
    """What of a kept value tells calls apart."""
    return (kept.shape, kept.dtype) if isinstance(kept, torch.Tensor) else str(kept)
