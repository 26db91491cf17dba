"""Meetings: streams of several devices that wait for each other.

Note [Meetings]
An all-reduce of one number lets streams wait for each other, and is a kernel: while one rank is
behind, it keeps a multiprocessor of the others from the model, and a product that was cut into one
piece for each of them needs a second round. A stream can also write a number into another device's
memory, and wait until one of its own has come to a value; the part of the device that starts
kernels does both, and no kernel takes part. Each rank has a number for each other one, which counts
its meetings: who comes writes the count to all others, and waits until theirs have reached it. A
count may be ahead, never behind, so no rank has to set one back.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from fastvideo_lightning.offload.shards import ShardGroup

_AT_LEAST = 0  # CU_STREAM_WAIT_VALUE_GEQ; the count may wrap around
_ITEM_BYTES = 4


class Meeting(Protocol):
    """Lets the current streams of all ranks wait for each other."""

    def meet(self) -> None:
        """Let the current stream wait for those of the other ranks; all must call equally often."""
        ...


class TokenMeeting:
    """By an all-reduce, wherever there is one.

    Args:
        shards: the ranks.
        device: this rank's, a CUDA device.
    """

    def __init__(self, shards: ShardGroup, device: torch.device) -> None:
        self._shards = shards
        self._token = torch.zeros(1, dtype=torch.int32, device=device)

    def meet(self) -> None:
        """Let the current stream wait for those of the other ranks; all must call equally often."""
        self._shards.meet(self._token)


class FlagMeeting:
    """By counts in each other's memory, see Note [Meetings].

    Args:
        rank: this rank's place among those that share.
        flags: this rank's counts, ``[ranks] int32`` zeros on its device.
        theirs: those of the other ranks, in their order, as memory that this device reaches.
    """

    def __init__(self, rank: int, flags: torch.Tensor, theirs: Sequence[torch.Tensor]) -> None:
        from cuda.bindings import driver  # torch needs it too, where it was built for CUDA

        self._driver = driver
        self._flags, self._theirs = flags, theirs  # kept, for their addresses are
        others = [other for other in range(flags.numel()) if other != rank]
        self._own = [flags.data_ptr() + _ITEM_BYTES * other for other in others]
        self._others = [other.data_ptr() + _ITEM_BYTES * rank for other in theirs]
        self._count = 0

    def meet(self) -> None:
        """Let the current stream wait for those of the other ranks; all must call equally often.

        Raises:
            RuntimeError: the driver refuses.
        """
        self._count = (self._count + 1) % (1 << 32)
        stream = torch.cuda.current_stream(self._flags.device).cuda_stream
        for address in self._others:
            self._check(self._driver.cuStreamWriteValue32(stream, address, self._count, 0))
        for address in self._own:
            self._check(self._driver.cuStreamWaitValue32(stream, address, self._count, _AT_LEAST))

    def _check(self, answer: tuple[int]) -> None:
        if answer[0] != 0:
            raise RuntimeError(f"The driver refused to let ranks wait for each other: {answer[0]}")
