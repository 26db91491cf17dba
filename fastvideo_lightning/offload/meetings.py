"""Meeting: streams of several devices that wait for each other.

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

import torch

from fastvideo_lightning.offload.stream_driver import StreamDriver

_ITEM_BYTES = 4


class Meeting:
    """Counts in each other's memory, see Note [Meetings].

    Args:
        driver: what lets streams write and wait.
        rank: this rank's place among those that meet.
        flags: this rank's counts, ``[ranks] int32`` zeros on its device.
        theirs: those of the other ranks, in their order, as memory that this device reaches.
    """

    def __init__(
        self, driver: StreamDriver, rank: int, flags: torch.Tensor, theirs: Sequence[torch.Tensor]
    ) -> None:
        self._driver = driver
        self._flags, self._theirs = flags, theirs  # kept, for their addresses are
        others = [other for other in range(flags.numel()) if other != rank]
        self._own = [flags.data_ptr() + _ITEM_BYTES * other for other in others]
        self._others = [other.data_ptr() + _ITEM_BYTES * rank for other in theirs]
        self._count = 0

    def meet(self, stream: int) -> None:
        """Let a stream wait for those of the other ranks; all must call equally often.

        Raises:
            RuntimeError: the driver refuses.
        """
        self._count = (self._count + 1) % (1 << 32)
        self._write_and_wait(stream)

    def try_out(self, stream: int) -> None:
        """Make the calls of a meeting, for which no rank waits; before the first one.

        Raises:
            RuntimeError: the driver refuses, as some do that share one GPU among machines.
        """
        self._write_and_wait(stream)

    def _write_and_wait(self, stream: int) -> None:
        for address in self._others:
            self._driver.write(address, self._count, stream)
        for address in self._own:
            self._driver.wait(address, self._count, stream)
