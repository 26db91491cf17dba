"""How far copies hide under computing: a denoiser's step, block by block.

Note [Why a step may take longer than computing and copying do]
A block's copy begins once a slot is free, so with two slots it is at most one block ahead of what
computes. Where a block takes about as long to come as to compute, that is too little to keep what a
resident block gains: the link waits for a slot while it computes, and the blocks behind it are late
again. A third slot keeps the gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

PASSES = 3
"""Until a pass begins as the one before it did: the first finds every slot free."""


@dataclass(frozen=True)
class BlockTime:
    """What one block takes.

    Attributes:
        compute_s: To compute.
        copy_s: To come in; 0 where it stays on the device.
    """

    compute_s: float
    copy_s: float = 0.0


def step_time(blocks: Sequence[BlockTime], num_slots: int) -> float:
    """Seconds of one pass through the blocks, in the middle of many.

    Args:
        blocks: In the order in which they compute.
        num_slots: Blocks that have device memory at the same time.
    """
    return _step_time(tuple(blocks), num_slots)


@lru_cache(maxsize=4096)
def _step_time(blocks: tuple[BlockTime, ...], num_slots: int) -> float:
    computed = copied = began = 0.0
    freed = [0.0] * num_slots  # when each slot was left last
    place = 0
    for _ in range(PASSES):
        began = computed
        for block in blocks:
            if block.copy_s:
                copied = max(copied, freed[place]) + block.copy_s
                computed = max(computed, copied) + block.compute_s
                freed[place] = computed
                place = (place + 1) % num_slots
            else:
                computed += block.compute_s
    return computed - began
