"""PeerSlots: the slots of the other ranks, which this rank's parts are written to directly.

Note [Pushed parts]
A device's copy engines write into another device's memory as well as into their own, over NVLink,
and no kernel takes part. A collective that joins parts is a kernel: it takes multiprocessors from
the model for as long as it runs, and a product that was cut into one piece for each of them then
needs a second round. So each rank pushes what it has brought into the same slot of every other
rank. Two meetings surround that, see Note [Meetings]: before the first push the slot is free on
every rank, behind the last one all parts are there.

All ranks use the same slots in the same order, for they make the same calls; that they did is
compared before each run, as all else is, see Note [Agreement].
"""

import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from fastvideo_lightning.offload.meetings import FlagMeeting, Meeting, TokenMeeting
from fastvideo_lightning.offload.parts import Chunk
from fastvideo_lightning.offload.shards import ShardGroup
from fastvideo_lightning.offload.slots import DeviceSlot

_log = logging.getLogger(__name__)

_STORAGE_DEVICE, _EVENT_SYNC_REQUIRED = 6, 14  # arguments of ``rebuild_cuda_tensor``
_LARGEST_TRAIL = 1 << 61

MEETS_BY_FLAGS = False
"""Whether ranks meet by `FlagMeeting`: `benchmarks.multi_gpu` compares it with `TokenMeeting`."""

Description = tuple[object, ...]
"""What another process needs to open a buffer."""


class PeerSlots:
    """Which of this rank's slots are known to the others, and theirs to this rank.

    Args:
        shards: the ranks.
        device: this rank's, a CUDA device.
    """

    def __init__(self, shards: ShardGroup, device: torch.device) -> None:
        self.shards = shards
        self.device = device
        self._is_possible = True
        self._theirs: WeakKeyDictionary[DeviceSlot, list[torch.Tensor]] = WeakKeyDictionary()
        self._places: WeakKeyDictionary[DeviceSlot, int] = WeakKeyDictionary()
        self._trail = 0
        self._meeting: Meeting = TokenMeeting(shards, device)

    def __contains__(self, slot: DeviceSlot) -> bool:
        return slot in self._theirs

    def open(self, slots: Sequence[DeviceSlot]) -> None:
        """Let all ranks know each other's slots; collective. Nothing may be on its way to them.

        Where one device cannot reach another's memory, no rank knows any.

        Raises:
            RuntimeError: the ranks have not used the same slots so far.
        """
        if not self._is_possible:
            return
        is_new = any(slot not in self._theirs for slot in slots)
        known = self.shards.exchange_numbers([is_new, self._trail])
        if len(set(known[:, 1].tolist())) > 1:
            raise RuntimeError(
                "The ranks have used different device memory for the same blocks, so what they "
                "joined is wrong. Start all of them again, or pass shard_transport='local'."
            )
        if not known[:, 0].any():
            return
        buffers = [slot.buffer for slot in slots]
        if MEETS_BY_FLAGS:  # others than before, which the other ranks may still know
            flags = torch.zeros(self.shards.size, dtype=torch.int32, device=self.device)
            buffers.append(flags)
        torch.cuda.synchronize(self.device)
        self._theirs.clear()
        torch.cuda.ipc_collect()  # slots that are gone, and that the others knew
        theirs = self._open(self.shards.exchange(self._describe(buffers)))
        if all(self.shards.exchange(theirs is not None)):
            assert theirs is not None
            if MEETS_BY_FLAGS:
                self._meeting = FlagMeeting(self.shards.rank, flags, theirs.pop())
            self._theirs.update(zip(slots, theirs, strict=True))
            self._places.update((slot, place) for place, slot in enumerate(slots, 1))
        else:
            self._is_possible = False

    def meet(self) -> None:
        """Let the current stream wait for those of the other ranks."""
        self._meeting.meet()

    def enter(self, slot: DeviceSlot) -> None:
        """A unit comes into a slot: wait, on the current stream, until it is free on all ranks."""
        self._trail = (31 * self._trail + self._places[slot]) % _LARGEST_TRAIL
        self.meet()

    def push(self, chunk: Chunk, slot: DeviceSlot) -> None:
        """Write this rank's part of a chunk into the same slot of every other rank."""
        mine = slot.buffer[chunk.own_begin : chunk.own_end]
        for buffer in self._theirs[slot]:
            buffer[chunk.own_begin : chunk.own_end].copy_(mine, non_blocking=True)

    def _describe(self, buffers: Sequence[torch.Tensor]) -> list[Description] | None:
        try:
            return [reduce_tensor(buffer)[1] for buffer in buffers]
        except RuntimeError as error:
            _log.debug("This process cannot let others reach its slots: %s", error)
            return None

    def _open(self, told: Sequence[list[Description] | None]) -> list[list[torch.Tensor]] | None:
        """The other ranks' of each buffer; None where there is one that cannot be had."""
        others = [buffers for rank, buffers in enumerate(told) if rank != self.shards.rank]
        try:
            opened = [[_open(one, self.device) for one in buffers] for buffers in others if buffers]
        except RuntimeError as error:
            _log.debug("Slots of other ranks cannot be reached: %s", error)
            return None
        return None if None in told else [list(one) for one in zip(*opened, strict=True)]


def _open(description: Description, device: torch.device) -> torch.Tensor:
    """Another rank's buffer as memory that ``device`` reaches."""
    arguments = list(description)
    arguments[_STORAGE_DEVICE] = device.index  # or it would make a context on the other device
    arguments[_EVENT_SYNC_REQUIRED] = False  # the other is idle, and the ranks have spoken since
    buffer: torch.Tensor = rebuild_cuda_tensor(*arguments)
    return buffer
