"""CopyStream: how a slab gets into a slot, and which stream waits for which.

Note [Slots and events]
A slot carries two events. ``ready`` is recorded on the copy stream behind the copy into the slot; a
stream that computes from the slot waits for it first. ``free`` is recorded on the computing stream
behind the last kernel that read the slot; the next copy into the slot waits for it. The host never
waits, nothing is allocated, and memory that outlives every copy needs no ``record_stream``.

Note [Captured copies]
A CUDA graph may hold a pass with its copies: the copy stream forks off the stream that is captured
and joins it at the end. A capture cannot wait for events that were recorded before it, so it uses
events of its own. Earlier copies are waited for before the graph is replayed, and later work is
ordered behind the graph's end.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Protocol

import torch

from fastvideo_lightning.offload.coding.coded import NUM_STAGING, PIECE_BYTES, CodedBytes
from fastvideo_lightning.offload.coding.exponents import decode
from fastvideo_lightning.offload.coding.kernel import check_available, decode_into
from fastvideo_lightning.offload.host.couriers import Couriers, WaitingCouriers, make_couriers
from fastvideo_lightning.offload.host.file_reads import FileRead
from fastvideo_lightning.offload.host.slab import HostMaster
from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit

READY, FREE = 0, 1
"""The events of a slot."""


class Transport(Protocol):
    """Moves host bytes into slots and keeps readers and writers of a slot apart."""

    @property
    def is_gathered(self) -> bool:
        """Whether units come in parts from several ranks, which all must make the same calls."""
        ...

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """Settle what a run relies on; called before each run, after edits were taken over.

        Args:
            units: what is to be moved.
            slots: the slots that they are moved to, but for units with memory of their own.
        """
        ...

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Start copying a unit's bytes into ``slot``."""
        ...

    def wait(self, slot: DeviceSlot) -> None:
        """Let the current compute stream wait until the last copy into ``slot`` is done."""
        ...

    def release(self, slot: DeviceSlot) -> None:
        """Say that all reads of ``slot`` are enqueued: the next copy into it comes after them."""
        ...

    def capturing(self) -> AbstractContextManager[None]:
        """Let copies inside of this context be part of the CUDA graph that is being captured."""
        ...

    def replayed(self, slots: Iterable[DeviceSlot]) -> None:
        """Say that the current stream replayed a graph that works with ``slots``."""
        ...

    def settle(self) -> None:
        """Block the host until all reads from files are done.

        Raises:
            RuntimeError: a file could not be read; what was computed since is of no use.
        """
        ...

    def drain(self) -> None:
        """Block the host until every copy is done and no kernel reads a slot."""
        ...


class CopyStream:
    """One CUDA stream for all copies of an engine, see Note [Slots and events].

    Args:
        device: a CUDA device.
    """

    is_gathered = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._on_stream = torch.cuda.stream(self.stream)
        self._captured: dict[tuple[DeviceSlot, int], torch.cuda.Event] | None = None
        self.couriers: Couriers | WaitingCouriers | None = None
        self._decoder: _Decoder | None = None

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """Nobody to agree with."""

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Start the copies once the slot's last reader is through."""
        if master.coded is not None:
            self._decode(master, master.coded, slot)
            return
        with self._on_stream:
            self._wait(slot, FREE, self.stream)
            if self._decoder is not None:  # it may have written a unit that nobody waited for
                self._wait(slot, READY, self.stream)
            for part, offset in master.segments:
                slot.buffer[offset : offset + part.numel()].copy_(part, non_blocking=True)
            if master.reads:
                self._send_couriers(master.reads, slot)
            self._record(slot, READY, self.stream)

    def _decode(self, master: HostMaster, coded: CodedBytes, slot: DeviceSlot) -> None:
        """Start the copies of coded pieces, and their decoding behind them."""
        if self._decoder is None:
            self._decoder = _Decoder(self.device)
        decoder = self._decoder
        self._wait(slot, FREE, decoder.stream)
        self._wait(slot, READY, decoder.stream)  # a copy that nobody waited for
        with decoder.on_stream:
            for part, offset in master.segments:
                slot.buffer[offset : offset + part.numel()].copy_(part, non_blocking=True)
        for piece in coded.pieces:
            staging = decoder.next_staging()
            data = staging.buffer[: piece.coded.data.numel()]
            with self._on_stream:
                self._wait(staging, FREE, self.stream)
                data.copy_(piece.coded.data, non_blocking=True)
                self._record(staging, READY, self.stream)
            with decoder.on_stream:
                self._wait(staging, READY, decoder.stream)
                decode_into(data, piece.coded.tiles, slot.buffer[piece.offset : piece.end])
                self._record(staging, FREE, decoder.stream)
        self._record(slot, READY, decoder.stream)

    def _send_couriers(self, reads: Sequence[FileRead], slot: DeviceSlot) -> None:
        if self._captured is not None:
            raise RuntimeError(
                "A CUDA graph repeats copies from memory, and these weights are read from a file "
                "on their way. Pass cuda_graphs=False, or host_memory='pinned'."
            )
        if self.couriers is None:
            self.couriers = make_couriers(self.stream.cuda_stream)
        if self.couriers.is_broken:
            self.drain()
        self.couriers.bring(reads, slot.buffer, self.stream.cuda_stream)

    def settle(self) -> None:
        """Wait for the couriers, where there are any."""
        if self.couriers is not None:
            self.couriers.settle()

    def wait(self, slot: DeviceSlot) -> None:
        """Order the current stream behind the slot's copy."""
        self._wait(slot, READY, torch.cuda.current_stream(self.device))

    def release(self, slot: DeviceSlot) -> None:
        """Record that the current stream is the slot's last reader."""
        self._record(slot, FREE, torch.cuda.current_stream(self.device))

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Be part of the CUDA graph that the current stream captures, see Note [Captured copies].

        Before a replay, the graph's stream has to wait for copies that are under way.
        """
        current = torch.cuda.current_stream(self.device)
        streams = [self.stream, *([] if self._decoder is None else [self._decoder.stream])]
        for stream in streams:
            stream.wait_event(current.record_event())
        self._captured = {}
        try:
            yield
        finally:
            self._captured = None
            with suppress(torch.AcceleratorError):  # a capture that failed says so at its end
                for stream in streams:
                    current.wait_event(stream.record_event())

    def replayed(self, slots: Iterable[DeviceSlot]) -> None:
        """The current stream has replayed a graph: later work on the slots comes behind it."""
        current = torch.cuda.current_stream(self.device)
        staging = () if self._decoder is None else self._decoder.staging
        for slot in (*slots, *staging):
            for event in slot.events():
                current.record_event(event)

    def _record(self, slot: DeviceSlot, which: int, stream: torch.cuda.Stream) -> None:
        if self._captured is None:
            stream.record_event(slot.events()[which])
        else:
            self._captured[slot, which] = stream.record_event()

    def _wait(self, slot: DeviceSlot, which: int, stream: torch.cuda.Stream) -> None:
        if self._captured is None:
            stream.wait_event(slot.events()[which])
        elif (slot, which) in self._captured:
            stream.wait_event(self._captured[slot, which])

    def drain(self) -> None:
        """Wait for the copy stream and for the stream that computes."""
        self.stream.synchronize()
        if self._decoder is not None:
            self._decoder.stream.synchronize()
        torch.cuda.current_stream(self.device).synchronize()
        if self.couriers is not None:
            self.couriers.recover()


class _Decoder:
    """What coded pieces pass on their way into slots, see Note [Coded units].

    Args:
        device: a CUDA device.

    Attributes:
        stream: decodes.
        on_stream: makes it the current one.
        staging: what pieces come into, in turns.
    """

    def __init__(self, device: torch.device) -> None:
        check_available()
        self.stream = torch.cuda.Stream(device, priority=-1)  # short, and a slot waits for it
        self.on_stream = torch.cuda.stream(self.stream)
        self.staging = tuple(DeviceSlot(PIECE_BYTES, device) for _ in range(NUM_STAGING))
        self._num_pieces = 0

    def next_staging(self) -> DeviceSlot:
        """The buffer for the next piece."""
        self._num_pieces += 1
        return self.staging[self._num_pieces % NUM_STAGING]


class InlineCopyStream:
    """The transport where there is no stream: a copy is done when the call returns."""

    is_gathered = False

    def agree(self, units: Sequence[OffloadUnit], slots: Sequence[DeviceSlot]) -> None:
        """Nobody to agree with."""

    def copy(self, master: HostMaster, slot: DeviceSlot) -> None:
        """Copy at once."""
        for part, offset in master.segments:
            slot.buffer[offset : offset + part.numel()].copy_(part)
        for read in master.reads:
            read.fill_slot(slot.buffer.data_ptr())
        for piece in () if master.coded is None else master.coded.pieces:
            slot.buffer[piece.offset : piece.end].copy_(decode(piece.coded).view(torch.uint8))

    def wait(self, slot: DeviceSlot) -> None:
        """Nothing to wait for."""

    def release(self, slot: DeviceSlot) -> None:
        """Nothing to order."""

    def capturing(self) -> AbstractContextManager[None]:
        """Nothing to capture: copies are not the device's work."""
        return nullcontext()

    def replayed(self, slots: Iterable[DeviceSlot]) -> None:
        """Nothing to order."""

    def settle(self) -> None:
        """A read that fails says so at once."""

    def drain(self) -> None:
        """Nothing in flight."""


def make_transport(device: torch.device) -> Transport:
    """The transport for a device: a copy stream on CUDA, inline copies elsewhere."""
    return CopyStream(device) if device.type == "cuda" else InlineCopyStream()
