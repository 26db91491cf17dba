"""LinkLoad: how busy a link would be, did its rank bring units by itself.

Note [Brought alone]
In parts, each of N links brings 1/N of a block, and ranks wait for each other at every block: a
delay of one delays all. Where a block computes for longer than it takes to bring it as a whole, no
rank has to wait. How long it computes depends on the video, so it is measured while one is made:
the bytes that came between two arrivals of the same unit, divided by the time between them. This
rate, divided by the link's own rate, is the load that these units would put on the link if the rank
brought them alone. Before the next video the ranks compare their loads; where the highest leaves a
tenth of the link to spare, units come as a whole. Then the copies themselves show the link's rate.
Where the link turns out to be the limit, units come in parts again; the rate that was seen counts
from then on, or the next video's units would come as a whole again.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

from fastvideo_lightning.offload.host.slab import HostMaster
from fastvideo_lightning.offload.timing import DeviceClock, Mark

MAX_LOAD = 900
"""In thousandths of the link's rate; above it copies begin to show."""

MakeMark = Callable[[], Mark]
"""Marks this moment in the stream of the copies."""


class Cycle(NamedTuple):
    """The units that came from one arrival of a unit to the next.

    Attributes:
        begin: when it came.
        end: when it came again.
        num_bytes: of all that came in between.
        units: these, by the ids of their host masters.
    """

    begin: Mark
    end: Mark
    num_bytes: int
    units: set[int]


class LinkLoad:
    """Notes copies of units in one run after the other.

    Args:
        clock: of the device that they come to.
        bytes_per_s: the links' rate, measured while all ranks bring whole units.
    """

    def __init__(self, clock: DeviceClock, bytes_per_s: float) -> None:
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._counted: int | None = None
        self._begin: Mark | None = None
        self._since: set[int] = set()
        self._bytes = 0
        self._cycles: list[Cycle] = []
        self._brought: list[tuple[Mark, Mark, int]] = []

    def arrive(self, master: HostMaster, mark: MakeMark) -> None:
        """The unit with this host master is about to come."""
        key = id(master)
        if key in self._since:
            now = mark()
            if key == self._counted:
                assert self._begin is not None
                self._cycles.append(Cycle(self._begin, now, self._bytes, self._since))
            # Where another unit is the first to come again, it is another model's turn.
            self._counted, self._begin = key, now
            self._since, self._bytes = set(), 0
        self._since.add(key)
        self._bytes += master.layout.size_bytes

    def time_alone(self, master: HostMaster, mark: MakeMark, copy: Callable[[], None]) -> None:
        """Copy a unit as a whole; the stream of the copies has nothing to wait for."""
        if id(master) != self._counted:
            copy()
            return
        begin = mark()
        copy()
        self._brought.append((begin, mark(), master.layout.size_bytes))

    def take(self) -> Callable[[HostMaster | None], int]:
        """The link's load by each unit in the run that is over, in thousandths; 0: not known."""
        if self._brought:
            self._bytes_per_s = statistics.median(self._rate(*copy) for copy in self._brought)
        loads: dict[int, int] = {}
        for begin, end, num_bytes, units in self._cycles:
            load = max(1, round(1000 * self._rate(begin, end, num_bytes) / self._bytes_per_s))
            loads |= {key: max(load, loads.get(key, 0)) for key in units}
        self._counted, self._since = None, set()
        self._cycles, self._brought = [], []
        return lambda master: loads.get(id(master), 0)

    def _rate(self, begin: Mark, end: Mark, num_bytes: int) -> float:
        return num_bytes / max(self._clock.seconds(begin, end), 1e-9)
