"""DeviceSlot and SlotRing: the fixed device memory that units take turns in."""

import torch

from fastvideo_lightning.offload.state import UnitState
from fastvideo_lightning.offload.unit import OffloadUnit


class DeviceSlot:
    """One piece of device memory that holds one unit at a time.

    Args:
        size_bytes: length of the buffer in bytes.
        device: where it lies.

    Attributes:
        buffer: ``[size_bytes] uint8``.
        holder: the unit whose bytes are in the buffer or on their way; None where they do not
            count.
    """

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # an inference tensor has no version to compare
            self.buffer = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.holder: OffloadUnit | None = None
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = (torch.cuda.Event(), torch.cuda.Event())
            # The allocator may hand out memory that earlier kernels of this stream still read.
            torch.cuda.current_stream(device).record_event(self._events[1])

    @property
    def size_bytes(self) -> int:
        """Length of the buffer in bytes."""
        return self.buffer.numel()

    def is_free_for(self, unit: OffloadUnit, *, evict: bool) -> bool:
        """Whether ``unit`` may be copied here: nothing else is in use, or, to evict, waits here."""
        if self.holder in (None, unit) or self.holder.state is UnitState.OFFLOADED:
            return True
        return evict and self.holder.state is UnitState.PREFETCHING

    def events(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """``(ready, free)``, see Note [Slots and events]; a slot on the CPU has none."""
        assert self._events is not None, "a slot outside CUDA has no events"
        return self._events


class SlotRing:
    """The slots of an engine, all of one size.

    Args:
        num_slots: how many units have device memory at the same time.
        device: where the slots lie.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        self.num_slots = num_slots
        self.device = device
        self.slots: list[DeviceSlot] = []

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot; 0 before the first ``resize``."""
        return self.slots[0].size_bytes if self.slots else 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots together."""
        return self.slot_bytes * len(self.slots)

    def resize(self, slot_bytes: int) -> None:
        """Make every slot ``slot_bytes`` long; 0 frees the memory. No slot may be in use."""
        if slot_bytes == self.slot_bytes:
            return
        self.slots.clear()  # first, so that old and new slots never lie side by side
        if slot_bytes:
            self.slots.extend(DeviceSlot(slot_bytes, self.device) for _ in range(self.num_slots))

    def find(self, unit: OffloadUnit, *, evict: bool) -> DeviceSlot | None:
        """A slot that ``unit`` may be copied to: its preferred one if it is idle, or else another.

        Args:
            unit: what is to be copied. In the regular order it always meets its preferred slot.
            evict: where none is idle, take one whose unit was prefetched and not used yet.

        Returns:
            The slot, or None where the others' units are in use, or wanted and not to be evicted.
        """
        candidates = (self.slots[unit.preferred_slot], *self.slots)
        for may_evict in (False, True) if evict else (False,):
            for slot in candidates:
                if slot.is_free_for(unit, evict=may_evict):
                    return slot
        return None
