"""Codes the bytes of units when they are attached, see Note [Coded units].

Each unit is brought to the device from its file, coded there, and what comes out is copied to
pinned memory of just its size, by threads: pinning takes longer than all else.
"""

import ctypes
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore

import torch

from fastvideo_lightning.offload.coding.coded import CodedBytes, CodedPiece, encode_part, parts_of
from fastvideo_lightning.offload.coding.exponents import Coded
from fastvideo_lightning.offload.host.mapped import MappedSlab
from fastvideo_lightning.offload.host.slab import HostMemory, HostSlab
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.profiling import phase
from fastvideo_lightning.offload.streams import Transport
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.unit import DeviceSlot, OffloadUnit

_THREADS = 8
_UNDER_WAY = 16
"""Pieces on the device that wait for their host memory."""


def compress(
    units: Sequence[OffloadUnit], store: HostStore, transport: Transport, device: torch.device
) -> None:
    """Code what units have in files; those that lie in memory of their own stay as they are.

    Args:
        units: loaded, and read on the way so far.
        store: of their masters.
        transport: brings them to the device; nothing else is under way.
        device: where they are coded.

    Raises:
        RuntimeError: a file could not be read.
    """
    slabs = [unit.slab for unit in units if isinstance(unit.slab, MappedSlab) and unit.slab.reads]
    if not slabs:
        return
    with phase("code units"), _Coder(store, transport, device) as coder:
        largest = max(slab.layout.size_bytes for slab in slabs)
        slots = [DeviceSlot(largest, device) for _ in range(min(2, len(slabs)))]
        for slot in slots:
            slot.buffer.zero_()  # what lies between tensors is coded with them
            transport.release(slot)
        transport.copy(slabs[0], slots[0])
        found = []
        for i, slab in enumerate(slabs):
            slot = slots[i % 2]
            if i + 1 < len(slabs):
                transport.copy(slabs[i + 1], slots[(i + 1) % 2])
            transport.wait(slot)
            found.append(coder.code(slab, slot.buffer))
            transport.release(slot)
        transport.settle()
    slots.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what coding took is not to split the memory of the run
    for slab, coded in zip(slabs, found, strict=True):
        slab.use_code(coded)


class _Coder:
    """Codes slots' bytes and keeps what comes out on the host; where that fails, nothing.

    Args:
        store: says whether host memory can be pinned.
        transport: has filled the slots.
        device: where they are.
    """

    def __init__(self, store: HostStore, transport: Transport, device: torch.device) -> None:
        self._store = store
        self._transport = transport
        self._device = device
        self._pool = ThreadPoolExecutor(_THREADS)
        self._room = Semaphore(_UNDER_WAY)
        self._under_way: list[Future[None]] = []
        self._memory: list[HostSlab] = []

    def __enter__(self) -> "_Coder":
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown()
        self._transport.drain()  # slots may go now
        try:
            for future in self._under_way:
                if raised[0] is None:
                    future.result()
        except BaseException:
            self._give_back()
            raise
        if raised[0] is not None:
            self._give_back()

    def _give_back(self) -> None:
        """Take back the registration of memory that nobody will use."""
        for memory in self._memory:
            memory.close()

    def code(self, slab: MappedSlab, slot: torch.Tensor) -> CodedBytes:
        """Code a unit that lies in a slot; its host memory is filled when the coder ends."""
        result = CodedBytes()
        for part in parts_of(slab.layout, slab.is_filled):
            for piece, coded in encode_part(slot, part) if part.is_coded else [(part, None)]:
                data = slot[piece.begin : piece.end].clone() if coded is None else coded.data
                whole = TensorSpec.contiguous(torch.Size([data.numel()]), torch.uint8)
                host = HostSlab(SlabLayout([whole]))
                result.memory.append(host)
                self._memory.append(host)
                if coded is None:
                    result.plain.append((host.buffer, piece.begin))
                else:
                    kept = Coded(host.buffer, coded.numbers)
                    result.pieces.append(CodedPiece(kept, piece.begin))
                self._keep(data, host)
        return result

    def _keep(self, data: torch.Tensor, host: HostSlab) -> None:
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.current_stream(self._device).record_event()
        self._room.acquire()
        self._under_way.append(self._pool.submit(self._copy_out, data, host, event))

    def _copy_out(self, data: torch.Tensor, host: HostSlab, event: torch.cuda.Event | None) -> None:
        try:
            if event is None:
                host.buffer.copy_(data)
                return
            # Memory that was touched is registered faster; by this thread alone, unlike torch's.
            ctypes.memset(host.buffer.data_ptr(), 0, host.size_bytes)
            self._store.pin(host, HostMemory.PINNED)
            stream = torch.cuda.Stream(self._device)
            with torch.cuda.stream(stream):
                stream.wait_event(event)
                host.buffer.copy_(data, non_blocking=True)
            stream.synchronize()
        finally:
            self._room.release()
