"""Pace: how fast units are wanted, to tell whether each rank can bring them by itself.

Note [Brought alone]
Parts halve what each link brings, and make ranks wait for each other at every block: what delays
one delays all. Where a block computes for longer than it takes to come as a whole, nobody has to
wait. How long it computes depends on the video, so it is measured while one is made: bytes that
came between two arrivals of the same unit, by the time between them. Before the next video the
ranks compare the fastest that any of them wanted a unit with what the links bring when each rank
brings everything. Where that is enough, with a tenth to spare, the unit comes as a whole; and where
links turn out to be what limits it, in parts again, for units cannot be seen to be wanted faster
than they come.
"""

from collections.abc import Callable

from fastvideo_lightning.offload.host import HostMaster
from fastvideo_lightning.offload.timing import DeviceClock, Mark

SPARE = 0.9
"""Of what the links bring; above it copies begin to show."""

_KB = 1000.0


class Pace:
    """Notes arrivals of units in one run after the other.

    Args:
        clock: of the device that they come to.
        bytes_per_s: what the links bring to each rank when all bring whole units.
    """

    def __init__(self, clock: DeviceClock, bytes_per_s: float) -> None:
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._counted: int | None = None
        self._units: set[int] = set()
        self._arrivals: list[tuple[Mark, int]] = []
        self._bytes = 0

    def arrive(self, master: HostMaster, mark: Callable[[], Mark]) -> None:
        """A unit is about to be copied.

        Args:
            master: its host master.
            mark: marks this moment in the stream of the copies.
        """
        key = id(master)
        if self._counted is None:
            if key not in self._units:
                self._units.add(key)
                return
            self._counted = key  # the first that comes again; a model's cycle goes through it
            self._units.clear()
        if key == self._counted:
            self._arrivals.append((mark(), self._bytes))
        self._units.add(key)
        self._bytes += master.layout.size_bytes

    def take(self) -> Callable[[HostMaster | None], int]:
        """How fast each unit was wanted in the run that is over, in kB/s; 0 where it is unknown."""
        pairs = zip(self._arrivals, self._arrivals[1:], strict=False)
        rates = [
            (to - since) / self._clock.seconds(begin, end) for (begin, since), (end, to) in pairs
        ]
        wanted = max(1, round(max(rates) / _KB)) if rates else 0
        units = self._units
        self._counted, self._units, self._arrivals, self._bytes = None, set(), [], 0
        return lambda master: wanted if id(master) in units else 0

    def suffices_alone(self, wanted: int) -> bool:
        """Whether links that bring everything to each rank keep up with so many kB/s."""
        return wanted * _KB < SPARE * self._bytes_per_s

    def tell(self, wanted: int) -> str:
        """The two rates in words."""
        brought = self._bytes_per_s / 1e9
        return f"{wanted * _KB / 1e9:.3g} GB/s are wanted, and links bring {brought:.3g} to each"
