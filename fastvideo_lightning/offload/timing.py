"""Time as the device sees it: marks in the computing stream, and how long copies made it wait."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fastvideo_lightning.offload.host.slab import HostMaster
from fastvideo_lightning.offload.streams import Transport
from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit

Mark = torch.cuda.Event | float


class DeviceClock:
    """Marks moments without making the host wait; they are read when the device is through.

    Args:
        device: whose computing stream is marked; elsewhere than on CUDA it is the host's time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Mark:
        """This moment: on CUDA, when the kernels launched so far are through."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, begin: Mark, end: Mark) -> float:
        """Seconds from one mark to another; waits until the device has passed the second."""
        if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            elapsed_ms: float = begin.elapsed_time(end)
            return elapsed_ms / 1e3
        assert isinstance(begin, float)
        assert isinstance(end, float)
        return end - begin


class TimedTransport:
    """A transport that notes how long the computing waited for another's copies.

    Args:
        transport: what moves the bytes.
        clock: marks when a wait begins and ends.
    """

    def __init__(self, transport: Transport, clock: DeviceClock) -> None:
        self.transport = transport
        self._clock = clock
        self._waits: list[tuple[Mark, Mark]] = []
        self._is_captured = False

    @property
    def is_gathered(self) -> bool:
        """As the transport is."""
        return self.transport.is_gathered

    @property
    def innermost(self) -> "TimedTransport":
        """The wrapper next to the real transport, where several wrappers time it."""
        inner = self.transport
        return inner.innermost if isinstance(inner, TimedTransport) else self

    def forget(self, timed: "TimedTransport") -> None:
        """Take out a wrapper that is inside of this one."""
        if self.transport is timed:
            self.transport = timed.transport
        elif isinstance(self.transport, TimedTransport):
            self.transport.forget(timed)

    def take_waits(self) -> list[tuple[Mark, Mark]]:
        """The waits since the last call, as the marks of their begins and ends."""
        waits, self._waits = self._waits, []
        return waits

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """As the transport does."""
        self.transport.agree(units, slots)

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """As the transport does; where copies are made inline, the computing waits for them."""
        if self._clock.device.type == "cuda":
            self.transport.copy(master, slot)
            return
        begin = self._clock.mark()
        self.transport.copy(master, slot)
        self._waits.append((begin, self._clock.mark()))

    def wait(self, slot: DeviceSlot) -> None:
        """As the transport does, between two marks; a graph has no marks."""
        if self._is_captured:
            self.transport.wait(slot)
            return
        begin = self._clock.mark()
        self.transport.wait(slot)
        self._waits.append((begin, self._clock.mark()))

    def release(self, slot: DeviceSlot) -> None:
        """As the transport does."""
        self.transport.release(slot)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """As the transport does."""
        self._is_captured = True
        try:
            with self.transport.capturing():
                yield
        finally:
            self._is_captured = False

    def replayed(self, slots: Iterable[DeviceSlot]) -> None:
        """As the transport does."""
        self.transport.replayed(slots)

    def settle(self) -> None:
        """As the transport does."""
        self.transport.settle()

    def drain(self) -> None:
        """As the transport does."""
        self.transport.drain()
