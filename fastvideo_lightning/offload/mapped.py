"""MappedSlab: a checkpoint file that is itself the host master, so that its bytes are held once.

Note [Two mappings]
A file is mapped twice. The shared, read-only mapping is registered with the CUDA driver and copied
from: all processes of a node and the page cache share its one copy. The module's parameters are
views of a private, writable mapping that is never registered: a write to a read-only mapping would
end the process. A write makes the kernel give that page a copy of its own, which the copies to the
device would not see; so before each run the page table tells whether a unit was written, and such a
unit moves to a slab of its own (``/proc/PID/pagemap``,
https://docs.kernel.org/admin-guide/mm/pagemap.html).
"""

import atexit
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fastvideo_lightning.offload.host import HostSlab, Segment, register, unregister
from fastvideo_lightning.offload.layout import SlabLayout
from fastvideo_lightning.offload.source import StoredBytes

CHUNK_BYTES = 1 << 30
"""Memory is registered in pieces of this size: one registration of everything may be refused."""

IS_SUPPORTED = sys.platform == "linux"
"""Only Linux says which pages were written."""

_READ_ONLY = 8  # cudaHostRegisterReadOnly


class MappedFile:
    """A file in memory twice, see Note [Two mappings].

    Args:
        path: the file; its users know it by this name.
        at: where it can be opened now, if not there.

    Attributes:
        shared: ``[size] uint8``, what copies read.
        private: the mapping that parameters are views of.
        sharers: processes that hold it together, where that is more than what a page cache does.
    """

    def __init__(self, path: Path, at: Path | None = None) -> None:
        self.path = path
        self.users = 0
        self.sharers = 1
        self._chunks: list[torch.Tensor] = []
        self._is_whole = False
        self._lock = threading.Lock()  # all units of the file register it
        with (at or path).open("rb") as file:
            self.private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            read_only = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nothing of ours writes to it
            self.shared = torch.frombuffer(read_only, dtype=torch.uint8)
        self._private_address = torch.frombuffer(self.private, dtype=torch.uint8).data_ptr()

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.shared.numel()

    @property
    def is_registered(self) -> bool:
        """Whether the driver knows the shared mapping, or what this process copies of it."""
        return bool(self._chunks)

    def register(self, pieces: Sequence[tuple[int, int]] | None = None) -> None:
        """Register the shared mapping with the CUDA driver, read-only.

        Args:
            pieces: where what to register begins and ends, in pages that no two share; None for
                all of it. A file of which other pieces are registered is registered as a whole.

        Raises:
            RuntimeError: the system refuses. Nothing stays registered then.
        """
        with self._lock:
            if self._is_whole:
                return
            if self.is_registered:
                torch.cuda.synchronize()  # copies from the pieces may be under way
                self.unregister()
                pieces = None
            if pieces is None:
                chunks = list(self.shared.split(CHUNK_BYTES))
            else:
                chunks = [self.shared[begin:end] for begin, end in pieces]
            self._is_whole = pieces is None
            try:
                for chunk in chunks:
                    register(chunk, _READ_ONLY)
                    self._chunks.append(chunk)
            except RuntimeError:
                self.unregister()
                raise

    def unregister(self) -> None:
        """Take back the registration, the last chunk first."""
        self._is_whole = False
        while self._chunks:
            unregister(self._chunks.pop())

    def is_written(self, offset: int, size_bytes: int) -> bool:
        """Whether a page of the private mapping in this range has a copy of its own."""
        page = mmap.PAGESIZE
        first = (self._private_address + offset) // page
        last = (self._private_address + offset + size_bytes - 1) // page
        with open("/proc/self/pagemap", "rb", buffering=0) as table:
            entries = os.pread(table.fileno(), (last - first + 1) * 8, first * 8)
        # NumPy takes one thread; torch's many wait for those of other processes, 75 ms for a block.
        flags = torch.frombuffer(bytearray(entries), dtype=torch.int64).numpy()
        is_there = (flags >> 62) & 3 != 0  # in memory or swapped out
        is_own = (flags >> 61) & 1 == 0  # neither a page of the file nor shared
        return bool((is_there & is_own).any())


class MappedSlab:
    """One unit's bytes in checkpoint files; what needs a cast lies in a slab beside them.

    Args:
        layout: where the tensors lie in a device slot.
        sources: for each of them where its bytes are.

    Attributes:
        views: the tensors, in the order of ``layout.specs``.
        segments: what a copy of the unit moves; neighbours in the file that are neighbours in the
            slot are one segment, so that a packed unit is one copy.
    """

    def __init__(self, layout: SlabLayout, sources: Sequence[StoredBytes | None]) -> None:
        self.layout = layout
        self._ranges: list[tuple[MappedFile, int, int]] = []
        fits = [
            is_mappable(source, spec.dtype)
            for source, spec in zip(sources, layout.specs, strict=True)
        ]
        self.is_filled = tuple(fits)
        cast = [spec for spec, fit in zip(layout.specs, fits, strict=True) if not fit]
        self._side = HostSlab(SlabLayout(cast))
        side_views = iter(self._side.views)
        side_offsets = iter(self._side.layout.offsets)
        self.views: list[torch.Tensor] = []
        self.segments: list[Segment] = []
        self._files: dict[Path, MappedFile] = {}
        for source, spec, offset, fit in zip(
            sources, layout.specs, layout.offsets, fits, strict=True
        ):
            if not fit:
                self.views.append(next(side_views))
                start = next(side_offsets)
                part = self._side.buffer[start : start + spec.size_bytes]
                self.segments.append(Segment(part, offset))
                continue
            assert source is not None
            assert source.path is not None
            if source.path not in self._files:
                self._files[source.path] = open_file(source.path)
            file = self._files[source.path]
            self.views.append(
                torch.frombuffer(
                    file.private, dtype=spec.dtype, count=spec.shape.numel(), offset=source.offset
                ).as_strided(spec.shape, spec.stride)
            )
            self._ranges.append((file, source.offset, spec.size_bytes))
            self._add_segment(file, source.offset, offset, spec.size_bytes)

    @property
    def pinned(self) -> bool:
        """Whether copies from it are asynchronous."""
        return all(file.is_registered for file in self._files.values())

    @property
    def size_bytes(self) -> int:
        """Bytes held on the host, those of the files included; of shared memory the share."""
        return sum(size // file.sharers for file, _, size in self._ranges) + self._side.size_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of them in checkpoint files."""
        return sum(size for file, _, size in self._ranges if file.sharers == 1)

    @property
    def is_shared(self) -> bool:
        """Whether all bytes are in files."""
        return not self._side.size_bytes

    def pin(self) -> None:
        """Register the files, and the slab beside them.

        Raises:
            RuntimeError: the system refuses.
        """
        for file in self._files.values():
            file.register()
        self._side.pin()

    def pin_again(self) -> None:
        """Register files as wholes of which this process has registered parts: all is copied now.

        Where the system refuses, copies come from memory that is not registered, and take longer.
        """
        with suppress(RuntimeError):
            for file in self._files.values():
                if file.is_registered:
                    file.register()

    def locate(self, part: torch.Tensor) -> tuple[MappedFile, int]:
        """The file that a segment's bytes lie in, and where they begin there."""
        for file in self._files.values():
            begin = part.data_ptr() - file.shared.data_ptr()
            if 0 <= begin < file.size_bytes:
                return file, begin
        raise AssertionError("the part is none of this slab's files")

    def is_written(self) -> bool:
        """Whether a tensor was written in place, which the copies would not see."""
        return any(file.is_written(offset, size) for file, offset, size in self._merged_ranges())

    def close(self) -> None:
        """Let go of the files. No copy may be in flight; the tensors stay valid."""
        self._side.close()
        for path in list(self._files):
            close_file(self._files.pop(path))

    def _add_segment(self, file: MappedFile, offset: int, slot_offset: int, size: int) -> None:
        if self.segments:
            last, start = self.segments[-1]
            begins = last.data_ptr() - file.shared.data_ptr()
            same_file = 0 <= begins < file.size_bytes
            in_chunk = begins // CHUNK_BYTES == (offset + size - 1) // CHUNK_BYTES
            if same_file and in_chunk and offset - begins == slot_offset - start >= last.numel():
                self.segments[-1] = Segment(file.shared[begins : offset + size], start)
                return
        while size:  # a copy may not cross from one registration into the next
            part = min(size, CHUNK_BYTES - offset % CHUNK_BYTES)
            self.segments.append(Segment(file.shared[offset : offset + part], slot_offset))
            offset, slot_offset, size = offset + part, slot_offset + part, size - part

    def _merged_ranges(self) -> list[tuple[MappedFile, int, int]]:
        merged: list[tuple[MappedFile, int, int]] = []
        for file, offset, size in self._ranges:
            if merged:
                last, start, length = merged[-1]
                if last is file and start + length <= offset <= start + length + mmap.PAGESIZE:
                    merged[-1] = (file, start, offset + size - start)
                    continue
            merged.append((file, offset, size))
        return merged


def is_mappable(source: StoredBytes | None, dtype: torch.dtype) -> bool:
    """Whether the bytes of a weight in its file are those that it runs with."""
    return (
        IS_SUPPORTED
        and source is not None
        and source.path is not None
        and source.stored_dtype == dtype
        and source.offset % dtype.itemsize == 0
        and source.shape.numel() > 0
    )


_OPEN: dict[Path, MappedFile] = {}
_OPEN_LOCK = threading.Lock()


def open_file(path: Path, *, at: Path | None = None) -> MappedFile:
    """The mappings of a file, which all its users share; each calls ``close_file`` at the end."""
    with _OPEN_LOCK:
        file = _OPEN.get(path)
        if file is None:
            file = _OPEN[path] = MappedFile(path, at)
        file.users += 1
        return file


def close_file(file: MappedFile) -> None:
    """Let go of a file; the last user takes its registration back."""
    with _OPEN_LOCK:
        file.users -= 1
        if file.users == 0:
            file.unregister()
            _OPEN.pop(file.path, None)


@atexit.register
def _unregister_all() -> None:
    """Before the driver goes: registered memory that vanishes makes it complain."""
    while _OPEN:
        _OPEN.popitem()[1].unregister()
