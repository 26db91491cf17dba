"""Ranks that reach each other's device memory: slots that they write to, streams that wait.

Note [Pushed parts]
A device's copy engines write into another device's memory as well as into their own, over NVLink,
and no kernel takes part. A collective that joins parts is a kernel: it takes multiprocessors from
the model for as long as it runs, and a matrix product that was cut into one piece for each
multiprocessor then needs a second round. So each rank pushes what it has brought into the same slot
of every other rank. Two barriers surround that, see Note [Peer barriers]: before the first push the
slot is free on every rank, behind the last one all parts are there. The calls go to the driver
directly: torch would make a view and choose a stream for each piece, and where kernels are short a
step waits for the host, on every rank for the slowest host.

All ranks use the same slots in the same order, for they make the same calls; that is checked before
each run, with the rest of Note [Agreement].

Note [Peer barriers]
An all-reduce of one number lets streams wait for each other, and is a kernel: while one rank is
behind, it takes a multiprocessor of each other rank from the model, with the same cost. A stream
can also write a number into another device's memory, and wait until one of its own has come to a
value; the part of the device that starts kernels does both, and no kernel takes part. Each rank has
a counter for each other rank. A rank that arrives at a barrier writes its count to all others, and
waits until their counts have reached its own. A count may be ahead, never behind, so no counter has
to be set back.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from fastvideo_lightning.offload.distributed.process_group import ShardGroup
from fastvideo_lightning.offload.distributed.shard_plan import Chunk
from fastvideo_lightning.offload.host.slab import Segment
from fastvideo_lightning.offload.stream_driver import StreamDriver
from fastvideo_lightning.offload.unit import DeviceSlot

_ITEM_BYTES = 4


class PeerBarrier:
    """A barrier of the ranks' streams, see Note [Peer barriers].

    Args:
        driver: what lets streams write and wait.
        rank: this rank's position among the ranks.
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

    def wait(self, stream: int) -> None:
        """Let a stream wait for those of the other ranks; all must call equally often.

        Raises:
            RuntimeError: the driver refuses.
        """
        self._count = (self._count + 1) % (1 << 32)
        self._write_and_wait(stream)

    def try_out(self, stream: int) -> None:
        """Make the calls of a barrier, for which no rank waits; before the first one.

        Raises:
            RuntimeError: the driver refuses, as some do that share one GPU among machines.
        """
        self._write_and_wait(stream)

    def _write_and_wait(self, stream: int) -> None:
        for address in self._others:
            self._driver.write(address, self._count, stream)
        for address in self._own:
            self._driver.wait(address, self._count, stream)


_log = logging.getLogger(__name__)

_STORAGE_DEVICE, _EVENT_SYNC_REQUIRED = 6, 14  # arguments of ``rebuild_cuda_tensor``
_LARGEST_TRAIL = 1 << 61

Description = tuple[object, ...]
"""Arguments with which another process opens a buffer."""


class _Opened(NamedTuple):
    """A slot that all ranks know.

    Attributes:
        number: its number among this rank's; it is the same on all.
        theirs: the other ranks' slots of this number, as memory that this device reaches.
        barrier: of the ranks' streams, the same for all slots.
    """

    number: int
    theirs: list[torch.Tensor]
    barrier: PeerBarrier


class PeerSlots:
    """Which of this rank's slots are known to the others, and theirs to this rank.

    Args:
        shards: the ranks.
        device: this rank's, a CUDA device.
    """

    def __init__(self, shards: ShardGroup, device: torch.device) -> None:
        self.shards = shards
        self.device = device
        self._driver = _find_driver()
        self._is_possible = True
        self._opened: WeakKeyDictionary[DeviceSlot, _Opened] = WeakKeyDictionary()
        self._trail = 0

    def __contains__(self, slot: DeviceSlot) -> bool:
        return slot in self._opened

    def open(self, slots: Sequence[DeviceSlot]) -> None:
        """Let all ranks know each other's slots; collective. Nothing may be on its way to them.

        Where one device cannot reach another's memory, or the driver lets no stream wait for a
        number in it, no rank knows any.

        Raises:
            RuntimeError: the ranks have not used the same slots so far.
        """
        if not self._is_possible:
            return
        is_new = any(slot not in self._opened for slot in slots)
        known = self.shards.all_gather_numbers([is_new, self._trail])
        if len(set(known[:, 1].tolist())) > 1:
            raise RuntimeError(
                "The ranks have used different device memory for the same blocks, so what they "
                "joined is wrong. Start all of them again, or pass shard_transport='local'."
            )
        if not known[:, 0].any():
            return
        flags = torch.zeros(self.shards.size, dtype=torch.int32, device=self.device)
        torch.cuda.synchronize(self.device)
        self._opened.clear()
        torch.cuda.ipc_collect()  # slots that are gone, and that the others knew
        told = self.shards.all_gather(self._describe([*(slot.buffer for slot in slots), flags]))
        theirs = self._open(told)
        barrier = None if theirs is None else self._arrange(flags, theirs.pop())
        if all(self.shards.all_gather(barrier is not None)):
            assert theirs is not None
            assert barrier is not None
            for number, (slot, others) in enumerate(zip(slots, theirs, strict=True), 1):
                self._opened[slot] = _Opened(number, others, barrier)
        else:
            self._is_possible = False

    def enter(self, slot: DeviceSlot, stream: int) -> None:
        """A unit comes into a slot: let a stream wait until it is free on all ranks."""
        opened = self._opened[slot]
        self._trail = (31 * self._trail + opened.number) % _LARGEST_TRAIL
        opened.barrier.wait(stream)

    def bring(self, segments: Sequence[Segment], slot: DeviceSlot, stream: int) -> None:
        """Copy from the host into this rank's slot."""
        assert self._driver is not None
        begin = slot.buffer.data_ptr()
        for part, offset in segments:
            self._driver.copy(begin + offset, part.data_ptr(), part.numel(), stream)

    def push(self, chunk: Chunk, slot: DeviceSlot, stream: int) -> None:
        """Write this rank's part of a chunk into the same slot of every other rank."""
        assert self._driver is not None
        begin, num_bytes = chunk.own_begin, chunk.own_end - chunk.own_begin
        mine = slot.buffer.data_ptr() + begin
        for buffer in self._opened[slot].theirs:
            self._driver.copy(buffer.data_ptr() + begin, mine, num_bytes, stream)

    def leave(self, slot: DeviceSlot, stream: int) -> None:
        """This rank has pushed its parts: let a stream wait until the others have, too."""
        self._opened[slot].barrier.wait(stream)

    def _arrange(self, flags: torch.Tensor, theirs: Sequence[torch.Tensor]) -> PeerBarrier | None:
        """Make the ranks' barrier; None where the driver lets no stream write and wait."""
        assert self._driver is not None
        barrier = PeerBarrier(self._driver, self.shards.rank, flags, theirs)
        stream = torch.cuda.Stream(self.device)  # barriers are not on the default one either
        try:
            with torch.cuda.device(self.device):
                barrier.try_out(stream.cuda_stream)
        except RuntimeError as error:
            _log.info("Parts are joined by all-gathers, for ranks cannot meet: %s", error)
            return None
        stream.synchronize()  # no count of this may come later than one of a barrier
        return barrier

    def _describe(self, buffers: Sequence[torch.Tensor]) -> list[Description] | None:
        if self._driver is None:
            return None
        try:
            return [reduce_tensor(buffer)[1] for buffer in buffers]
        except RuntimeError as error:
            _log.debug("This process cannot let others reach its slots: %s", error)
            return None

    def _open(self, told: Sequence[list[Description] | None]) -> list[list[torch.Tensor]] | None:
        """The other ranks' counterparts of each buffer; None where one cannot be reached."""
        others = [buffers for rank, buffers in enumerate(told) if rank != self.shards.rank]
        try:
            opened = [[_open(one, self.device) for one in buffers] for buffers in others if buffers]
        except RuntimeError as error:
            _log.debug("Slots of other ranks cannot be reached: %s", error)
            return None
        return None if None in told else [list(one) for one in zip(*opened, strict=True)]


def _find_driver() -> StreamDriver | None:
    try:
        return StreamDriver()
    except ImportError as error:
        _log.info("Parts are joined by all-gathers, for there is no cuda.bindings: %s", error)
        return None


def _open(description: Description, device: torch.device) -> torch.Tensor:
    """Another rank's buffer as memory that ``device`` reaches."""
    arguments = list(description)
    arguments[_STORAGE_DEVICE] = device.index  # or it would make a context on the other device
    arguments[_EVENT_SYNC_REQUIRED] = False  # the other is idle, and the ranks have spoken since
    buffer: torch.Tensor = rebuild_cuda_tensor(*arguments)
    return buffer
