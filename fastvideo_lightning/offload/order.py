"""UnitOrder: which unit is expected after which.

Note [The order of units]
Each streamed unit has a successor: whom to prefetch while it computes. At first that is the next
block of its own list, and the list wraps around, for the next denoising step begins where this one
did. When another unit follows twice in a row it becomes the successor; a single detour (the
hand-over between two experts, a skipped block) is a miss and leaves the order alone.
"""

from collections.abc import Sequence

from fastvideo_lightning.offload.unit import OffloadUnit


class UnitOrder:
    """The order in which units are expected to be needed, learned as they are."""

    def __init__(self) -> None:
        self._successor: dict[OffloadUnit, OffloadUnit] = {}
        self._position: dict[OffloadUnit, int] = {}
        self._doubted: dict[OffloadUnit, OffloadUnit] = {}
        self._last: OffloadUnit | None = None

    @property
    def first(self) -> OffloadUnit | None:
        """The unit that a run is expected to need first."""
        return next(iter(self._successor), None)

    def add_cycle(self, units: Sequence[OffloadUnit]) -> None:
        """Expect ``units`` one after the other, and around again."""
        for i, unit in enumerate(units):
            self._successor[unit] = units[(i + 1) % len(units)]
            self._position[unit] = len(self._position)

    def remove(self, unit: OffloadUnit) -> None:
        """Expect its successor in its place."""
        follower = self._successor.pop(unit, unit)
        self._position.pop(unit, None)
        self._doubted.clear()
        if self._last is unit:
            self._last = None
        for before, after in list(self._successor.items()):
            if after is unit:
                self._successor[before] = follower if follower is not unit else before

    def after(self, unit: OffloadUnit) -> OffloadUnit:
        """The unit expected after ``unit``; itself where none is."""
        return self._successor.get(unit, unit)

    def wraps(self, unit: OffloadUnit, following: OffloadUnit) -> bool:
        """Whether going on to ``following`` means starting over."""
        return self._position[following] <= self._position[unit]

    def learn(self, unit: OffloadUnit) -> None:
        """Take note that ``unit`` is needed now, see Note [The order of units]."""
        last, self._last = self._last, unit
        if last is None or last is unit:
            return
        if self._successor[last] is unit:
            self._doubted.pop(last, None)
        elif self._doubted.get(last) is unit:
            self._successor[last] = unit
            del self._doubted[last]
        else:
            self._doubted[last] = unit
