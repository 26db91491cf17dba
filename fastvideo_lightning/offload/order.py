"""UnitOrder: which unit is expected after which.

Note [The order of units]
Each streamed unit has a successor: the unit to prefetch while it computes. At first that is the
next block of its own list, and the list wraps around, for the next denoising step begins where this
one did. When another unit follows twice in a row it becomes the successor; a single detour (a
skipped block) is a miss and leaves the order alone.

A model may call its lists in another order than it registers them, or alternate between them. Where
two passes in a row needed all of its units in the same new order, the cycle is made anew
(``follow``): a pass begins with the unit that is needed first, and the list ends where the model
does.

In a backward the blocks are called again in the opposite order, which changes no successor: the
unit to prefetch then is the predecessor.

Where a list ends, three things can tell which unit comes next. First, a callback may have said so
(``expect``): the VAE follows the last step, the other expert follows an expert's last step. Second,
the run before: as long as this run has gone the same way, the same unit follows (a text encoder is
called twice, then the denoiser). Third, without either, the list begins anew.
"""

from collections import defaultdict
from collections.abc import Sequence

from fastvideo_lightning.offload.tensors.autograd import in_backward
from fastvideo_lightning.offload.unit import OffloadUnit


class UnitOrder:
    """The order in which units are expected to be needed, learned from their calls."""

    def __init__(self) -> None:
        self._successor: dict[OffloadUnit, OffloadUnit] = {}
        self._position: dict[OffloadUnit, int] = {}
        self._tails: set[OffloadUnit] = set()
        self._doubted: dict[OffloadUnit, OffloadUnit] = {}
        self._in_pass: list[OffloadUnit] = []
        self._last: OffloadUnit | None = None
        self._first: OffloadUnit | None = None
        self._turns: dict[OffloadUnit, list[OffloadUnit]] = defaultdict(list)
        self._turns_before: dict[OffloadUnit, list[OffloadUnit]] = {}
        self._expected: OffloadUnit | None = None
        self._passes_left = 0

    @property
    def first(self) -> OffloadUnit | None:
        """The unit that a run is expected to need first: the one that the last run needed first."""
        return self._first or next(iter(self._successor), None)

    @property
    def expected(self) -> OffloadUnit | None:
        """The unit that follows the pass in progress, where somebody said so."""
        return self._expected if self._passes_left <= 0 else None

    def add_cycle(self, units: Sequence[OffloadUnit]) -> None:
        """Expect ``units`` one after the other, and around again."""
        for i, unit in enumerate(units):
            self._successor[unit] = units[(i + 1) % len(units)]
            self._position[unit] = len(self._position)
        self._tails.update(units[-1:])

    def remove(self, unit: OffloadUnit) -> None:
        """Forget a unit: its predecessor is followed by its successor from now on."""
        follower = self._successor.pop(unit, unit)
        self._position.pop(unit, None)
        self._doubted.clear()
        self._turns.clear()
        self._turns_before.clear()
        if self._last is unit:
            self._last = None
        if self._first is unit:
            self._first = None
        if self._expected is unit:
            self._expected = None
        for before, after in list(self._successor.items()):
            if after is unit:
                self._successor[before] = follower if follower is not unit else before
                if unit in self._tails:
                    self._tails.add(before)
        self._tails.discard(unit)

    def begin_run(self) -> None:
        """A run begins: it is expected to go as the last one went."""
        self._turns_before, self._turns = self._turns, defaultdict(list)
        self._last = self._expected = None

    def end_run(self) -> None:
        """The run is over: the unit that was still expected does not come."""
        self._expected = None

    def begin_pass(self, *, joins: bool = False) -> None:
        """A model with streamed blocks is called.

        Args:
            joins: it passes its units along with a call that has begun.
        """
        self._passes_left -= 1
        if not joins:
            self._in_pass.clear()

    def seen(self, units: Sequence[OffloadUnit]) -> list[OffloadUnit]:
        """Those of ``units`` that this pass has needed so far, by their first call."""
        among = set(units)
        return [unit for unit in dict.fromkeys(self._in_pass) if unit in among]

    def follow(self, units: Sequence[OffloadUnit]) -> None:
        """Expect the units of a cycle in another order from now on."""
        positions = sorted(self._position[unit] for unit in units)
        self._tails.difference_update(units)
        self._tails.update(units[-1:])
        self._position.update(zip(units, positions, strict=True))
        self._successor.update(zip(units, [*units[1:], units[0]], strict=True))
        self._doubted.clear()
        self._turns.clear()
        self._turns_before.clear()

    def expect(self, unit: OffloadUnit, *, after_passes: int) -> None:
        """Expect ``unit`` when the model's list ends for the ``after_passes``-th time from now."""
        self._expected, self._passes_left = unit, after_passes

    def after(self, unit: OffloadUnit) -> OffloadUnit:
        """The unit expected after ``unit``; itself where none is."""
        if in_backward():
            return next((u for u, after in self._successor.items() if after is unit), unit)
        following = self._successor.get(unit, unit)
        if unit not in self._tails:
            return following
        if self.expected is not None:
            return self.expected
        so_far, before = self._turns[unit], self._turns_before.get(unit, [])
        if len(so_far) < len(before) and before[: len(so_far)] == so_far:
            return before[len(so_far)]
        return following

    def window(self, unit: OffloadUnit, length: int) -> list[OffloadUnit]:
        """``unit`` and those expected after it, ``length`` in all."""
        units = [unit]
        while len(units) < length:
            units.append(self.after(units[-1]))
        return units

    def closes(self, units: Sequence[OffloadUnit]) -> bool:
        """Whether ``units`` are expected one after the other, and around again."""
        return not units or self.window(units[0], len(units) + 1) == [*units, units[0]]

    def wraps(self, unit: OffloadUnit, following: OffloadUnit) -> bool:
        """Whether going on to ``following`` means starting over."""
        here, there = self._position[unit], self._position.get(following, -1)
        return there >= here if in_backward() else there <= here

    def arrive(self, unit: OffloadUnit) -> None:
        """Take note that ``unit`` is needed now, see Note [The order of units]."""
        if unit is self._expected:
            self._expected = None
        if unit not in self._position or in_backward():
            return
        self._in_pass.append(unit)
        last, self._last = self._last, unit
        if last is None:
            self._first = unit
        if last is None or last is unit:
            return
        if last in self._tails:
            self._turns[last].append(unit)
        if self._successor[last] is unit:
            self._doubted.pop(last, None)
        elif self._doubted.get(last) is unit:
            self._successor[last] = unit
            del self._doubted[last]
        else:
            self._doubted[last] = unit
