"""Couriers: a few pinned buffers that bring files to device slots, and keep nothing of them.

Note [Couriers]
Weights that wait in a file, and not in memory of the process, are read on their way: threads fill
pinned buffers, and the copy stream empties them into a slot. The thread that launches a model waits
for neither. It enqueues all that a unit needs at once, in the order of its reads: let the copy
stream wait until the buffer is filled, copy, say that the buffer is free. Both are numbers in
pinned memory, which a stream can wait for and write.

The threads make no CUDA call, for a stream that waits can hold the driver's lock. They take the
reads in their order, so the one that the copy stream waits for is always under way. Number ``n``
uses buffer ``n % num_buffers`` in turn ``n // num_buffers + 1``: it is filled once the copy of the
turn before is done, and its numbers count turns.

A read that fails counts as filled, and so do all reads behind it: no stream is left waiting. The
bytes that were copied then are not the weights, so ``settle`` raises before a result computed from
them can be used.
"""

import atexit
import ctypes
import os
import queue
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from fastvideo_lightning.offload.host.file_reads import FileRead
from fastvideo_lightning.offload.host.slab import HostSlab
from fastvideo_lightning.offload.stream_driver import StreamDriver
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec

BUFFER_BYTES = 32 << 20
"""Of one courier: large enough that a read's fixed cost does not show, in time and in Python."""

NUM_BUFFERS = 16
"""Half a GiB in all: what is read ahead while every slot is in use."""

NUM_READERS = max(min(12, (os.cpu_count() or 1) - 2), 1)
"""Threads that read: from the page cache 1, 4, 8 and 12 of them bring 5, 20, 32 and 35 GB/s."""

_POLL_S = 2e-4
_ITEM_BYTES = 4

Counts = ctypes.Array[ctypes.c_int32]


class Couriers:
    """Buffers, the threads that fill them, and what a copy stream needs to empty them.

    Args:
        driver: what lets a stream wait for a number and write one.
        buffer_bytes: of each buffer; a read must fit.
        num_buffers: how many.
        num_readers: threads that read.
        pin: register the buffers; copies from them do not overlap without.
    """

    def __init__(
        self,
        driver: StreamDriver,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        num_buffers: int = NUM_BUFFERS,
        num_readers: int = NUM_READERS,
        pin: bool = True,
    ) -> None:
        self._driver = driver
        self._buffer_bytes, self._num_buffers = buffer_bytes, num_buffers
        buffers = TensorSpec.contiguous(torch.Size([buffer_bytes * num_buffers]), torch.uint8)
        counts = TensorSpec.contiguous(torch.Size([2 * num_buffers]), torch.int32)
        self._slab = HostSlab(SlabLayout([buffers, counts]))
        self._slab.buffer.zero_()  # memory that was touched is registered faster
        if pin:
            self._slab.pin()
        buffers_at, counts_at = (view.data_ptr() for view in self._slab.views)
        self._buffer_at = [buffers_at + buffer_bytes * i for i in range(num_buffers)]
        self._filled_at = [counts_at + _ITEM_BYTES * i for i in range(num_buffers)]
        self._freed_at = [counts_at + _ITEM_BYTES * (num_buffers + i) for i in range(num_buffers)]
        self._num_readers = num_readers
        self._num_enqueued = 0
        self._alive: list[_Readers] = []
        self._start()
        self._close = weakref.finalize(self, _close, self._alive, self._slab)
        self._close.atexit = False

    @property
    def size_bytes(self) -> int:
        """Pinned memory that they hold, in bytes."""
        return self._slab.size_bytes

    @property
    def is_broken(self) -> bool:
        """Whether a read failed, or enqueuing one was interrupted; until ``recover``."""
        return self._readers.is_broken

    def try_out(self, stream: int) -> None:
        """Make the calls of ``bring`` for which no stream waits, before the first one.

        Raises:
            RuntimeError: the driver refuses, as some do that share one GPU among machines.
        """
        self._driver.wait(self._filled_at[0], 0, stream)
        self._driver.write(self._freed_at[0], 0, stream)

    def bring(self, reads: Sequence[FileRead], slot: torch.Tensor, stream: int) -> None:
        """Enqueue on a stream what brings ``reads`` to a slot; see Note [Couriers].

        Args:
            reads: none longer than a buffer.
            slot: ``[bytes] uint8``, whose last reader the stream has waited for.
            stream: handle of a CUDA stream of the current device, which is the current stream.
        """
        address = slot.data_ptr()
        try:
            for read in reads:
                i, turn = self._readers.turn_of(self._num_enqueued)
                self._num_enqueued += 1
                self._readers.put(read)
                self._driver.wait(self._filled_at[i], turn, stream)
                for run in read.runs:
                    source = self._buffer_at[i] + run.begin
                    self._driver.copy(address + run.offset, source, run.size_bytes, stream)
                self._driver.write(self._freed_at[i], turn, stream)
        except BaseException:
            self._readers.is_broken = True  # they wait for no buffer any more, and read nothing
            raise

    def settle(self) -> None:
        """Block until all that was enqueued is read; RuntimeError where that was not possible."""
        while self._readers.num_read < self._num_enqueued and not self._readers.is_broken:
            time.sleep(_POLL_S)
        if self._readers.error is not None:
            raise self._readers.error

    def recover(self) -> None:
        """Begin anew after a failure; every stream has to be through with its copies."""
        if self.is_broken:
            self._alive.pop().end()
            self._num_enqueued = 0
            self._slab.views[1].zero_()
            self._start()

    def close(self) -> None:
        """Give the memory back."""
        self._close()

    @property
    def _readers(self) -> "_Readers":
        return self._alive[0]

    def _start(self) -> None:
        filled, freed = (
            (ctypes.c_int32 * self._num_buffers).from_address(at[0])
            for at in (self._filled_at, self._freed_at)
        )
        self._alive.append(_Readers(self._buffer_at, filled, freed, self._num_readers))


class WaitingCouriers:
    """Couriers where memory cannot be pinned or streams cannot wait: the launching thread does.

    Threads read ahead within a unit; each copy is done when ``bring`` returns.
    """

    is_broken = False

    def __init__(self) -> None:
        size = torch.Size([NUM_READERS, BUFFER_BYTES])
        self._slab = HostSlab(SlabLayout([TensorSpec.contiguous(size, torch.uint8)]))
        self._buffers = list(self._slab.views[0])
        self._pool = ThreadPoolExecutor(NUM_READERS)

    @property
    def size_bytes(self) -> int:
        """Memory that they hold, in bytes."""
        return self._slab.size_bytes

    def bring(self, reads: Sequence[FileRead], slot: torch.Tensor, stream: int) -> None:
        """Bring ``reads`` to a slot; the arguments are those of ``Couriers.bring``.

        Raises:
            RuntimeError: a file could not be read.
        """
        for begin in range(0, len(reads), len(self._buffers)):
            pairs = list(zip(reads[begin:], self._buffers, strict=False))
            filled = [self._pool.submit(read.fill, buffer.data_ptr()) for read, buffer in pairs]
            wait(filled)
            for (read, buffer), one in zip(pairs, filled, strict=True):
                one.result()
                for start, offset, size in read.runs:
                    slot[offset : offset + size].copy_(buffer[start : start + size])

    def settle(self) -> None:
        """A read that fails says so at once."""

    def recover(self) -> None:
        """Nothing is left of a failure."""


def make_couriers(stream: int) -> Couriers | WaitingCouriers:
    """The couriers that the system allows, for a stream of the current device."""
    try:
        couriers = Couriers(StreamDriver())
        couriers.try_out(stream)
    except (ImportError, RuntimeError) as error:
        warnings.warn(
            f"The system refuses pinned buffers that a stream waits for ({error}). The thread that "
            "launches the model waits for files to be read: the results are the same, the steps "
            "slower. Raise the locked-memory limit (`ulimit -l unlimited`).",
            stacklevel=2,
        )
        return WaitingCouriers()
    return couriers


class _Readers:
    """The threads, which know memory and files alone.

    Attributes:
        is_broken: a read failed or was not enqueued: bytes that are copied are not the weights.
        error: of the first read that failed.
        num_read: reads that are done.
    """

    def __init__(
        self, buffer_at: list[int], filled: Counts, freed: Counts, num_threads: int
    ) -> None:
        self.is_broken = False
        self.error: Exception | None = None
        self.num_read = 0
        self._buffer_at, self._filled, self._freed = buffer_at, filled, freed
        self._num_taken = 0
        self._queue: queue.SimpleQueue[FileRead | None] = queue.SimpleQueue()
        self._taking, self._counting = threading.Lock(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name="courier")
            for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()
        _ALL.add(self)

    def turn_of(self, number: int) -> tuple[int, int]:
        """Which buffer a read uses, and in which turn of that buffer, counted from 1."""
        num_buffers = len(self._buffer_at)
        return number % num_buffers, number // num_buffers + 1

    def put(self, read: FileRead) -> None:
        """Have a file's bytes read, behind all that was put before."""
        self._queue.put(read)

    def end(self, timeout_s: float | None = None) -> None:
        """Read nothing more, say that all is read, and wait for the threads."""
        self.is_broken = True
        self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            read, i, turn = taken
            try:
                if not self.is_broken:
                    read.fill(self._buffer_at[i])
            except Exception as error:
                self.error = self.error or error
                self.is_broken = True
            finally:
                with self._counting:  # once one has failed, nobody waits for who is a turn behind
                    self._filled[i] = max(self._filled[i], turn)
                    self.num_read += 1

    def _take(self) -> tuple[FileRead, int, int] | None:
        """The next read, its buffer and turn; one thread at a time waits for a free buffer."""
        with self._taking:
            read = self._queue.get()
            if read is None:
                self._queue.put(None)  # for the other threads
                return None
            i, turn = self.turn_of(self._num_taken)
            self._num_taken += 1
            while self._freed[i] < turn - 1 and not self.is_broken:
                time.sleep(_POLL_S)
            return read, i, turn


def _close(alive: list[_Readers], slab: HostSlab) -> None:
    for readers in alive:
        readers.end()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # copies from the buffers may be under way
    slab.close()


_ALL: "weakref.WeakSet[_Readers]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Before the driver goes: a stream that waits for a read would wait for ever."""
    for readers in list(_ALL):
        readers.end(timeout_s=5)
