"""UnitState: where a unit's bytes are."""

from enum import Enum


class UnitState(Enum):
    """Where a unit's bytes are. The engine alone changes it.

    OFFLOADED: the host slab holds the bytes, the unit claims no device memory; its module shows
        host tensors.
    PREFETCHING: the host slab holds them and a copy into one slot is in flight or done; its module
        still shows host tensors.
    RESIDENT: the host slab holds them and one slot does; its module shows the slot.
    """

    OFFLOADED = "offloaded"
    PREFETCHING = "prefetching"
    RESIDENT = "resident"
