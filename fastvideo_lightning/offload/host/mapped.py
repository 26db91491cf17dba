"""A checkpoint's file that is itself the host master: mapped, and registered with the driver.

The page table of this process tells which pages of a private mapping were written:
``/proc/PID/pagemap``, https://docs.kernel.org/admin-guide/mm/pagemap.html.

Note [Two mappings]
A file is mapped twice. The shared, read-only mapping is registered with the CUDA driver and copied
from: all processes of a node and the page cache share its one copy. The module's parameters are
views of a private, writable mapping that is never registered: a write to a read-only mapping would
end the process. A write makes the kernel give that page a copy of its own, which the copies to the
device would not see; so before each run the page table tells whether a unit was written, and such a
unit moves to a slab of its own. Of one file there is one shared mapping in a process, but a private
one for each attachment: two models of one checkpoint are two, and an edit of one is not the
other's.
"""

import atexit
import mmap
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fastvideo_lightning.offload.coding.coded import CodedBytes
from fastvideo_lightning.offload.host.couriers import BUFFER_BYTES
from fastvideo_lightning.offload.host.file_reads import (
    FilePiece,
    FileRead,
    FileReader,
    Version,
    plan_reads,
    version_of,
)
from fastvideo_lightning.offload.host.slab import (
    HostMemory,
    HostSlab,
    Segment,
    register,
    unregister,
)
from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.tensors.leaves import leaves_of
from fastvideo_lightning.offload.tensors.sources import FileBytes, StoredBytes

PAGEMAP = Path("/proc/self/pagemap")


def is_readable(path: Path = PAGEMAP) -> bool:
    """Whether the table is there, may be read, and knows a page that is in memory for sure."""
    if sys.platform != "linux":
        return False
    page = torch.ones(1)
    try:
        (entry,) = _read(path, page.data_ptr(), 1).tolist()
    except (OSError, ValueError):  # not there, forbidden, or empty
        return False
    return bool(entry < 0)  # bit 63: in memory


def is_written(address: int, size_bytes: int) -> bool:
    """Whether a page of a private mapping of a file in this range has a copy of its own."""
    # NumPy takes one thread; torch's many wait for those of other processes, 75 ms for a block.
    flags = _read(PAGEMAP, address, size_bytes).numpy()
    is_there = (flags >> 62) & 3 != 0  # in memory or swapped out
    is_own = (flags >> 61) & 1 == 0  # neither a page of the file nor shared
    return bool((is_there & is_own).any())


def _read(path: Path, address: int, size_bytes: int) -> torch.Tensor:
    """The entries of a range's pages, ``[pages] int64``."""
    first = address // mmap.PAGESIZE
    last = (address + size_bytes - 1) // mmap.PAGESIZE
    with path.open("rb", buffering=0) as table:
        entries = os.pread(table.fileno(), (last - first + 1) * 8, first * 8)
    return torch.frombuffer(bytearray(entries), dtype=torch.int64)


CHUNK_BYTES = 1 << 30
"""Memory is registered in pieces of this size: one registration of everything may be refused."""

IS_SUPPORTED = is_readable()
"""Whether the system says which pages were written: Linux does, but for some containers."""

_READ_ONLY = 8  # cudaHostRegisterReadOnly


class PrivateMapping(mmap.mmap):
    """What parameters are views of; it lives as long as any of them."""

    path: Path
    version: Version | None
    address: int

    def view_at(self, offset: int, spec: TensorSpec) -> torch.Tensor:
        """What lies at a position of the file, as a tensor of this mapping."""
        count = spec.shape.numel()
        flat = torch.frombuffer(self, dtype=spec.dtype, count=count, offset=offset)
        return flat.as_strided(spec.shape, spec.stride)

    def is_written(self, offset: int, size_bytes: int) -> bool:
        """Whether a page in this range has a copy of its own."""
        return is_written(self.address + offset, size_bytes)


class MappedFile:
    """A file in memory twice, see Note [Two mappings].

    Args:
        path: the file; its users know it by this name.
        version: of what lies there; None for memory that ranks share, which has a name alone.
        at: where it can be opened now, if not there.

    Attributes:
        shared: ``[size] uint8``, the mapping that copies read.
        sharers: processes that hold this memory together; 1 for a checkpoint's file.
    """

    def __init__(self, path: Path, version: Version | None, at: Path | None = None) -> None:
        self.key = path, version
        self.users = 0
        self.sharers = 1
        self._chunks: list[torch.Tensor] = []
        self._is_whole = False
        self._reader: FileReader | None = None
        self._lock = threading.Lock()  # all units of the file register it
        self._descriptor = os.open(at or path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        read_only = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        # Nothing of ours writes to it. Said for good: other threads share the filters.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        self.shared = torch.frombuffer(read_only, dtype=torch.uint8)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.shared.numel()

    @property
    def is_registered(self) -> bool:
        """Whether the driver knows the shared mapping, or what this process copies of it."""
        return bool(self._chunks)

    def map_privately(self) -> PrivateMapping:
        """A mapping that parameters may be views of: what is written there is nobody else's."""
        mapping = PrivateMapping(self._descriptor, 0, access=mmap.ACCESS_COPY)
        mapping.path, mapping.version = self.key
        mapping.address = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
        if mapping.version is not None:
            _PRIVATE.add(mapping)
        return mapping

    def reader(self) -> FileReader:
        """What reads the file past this process's memory.

        Raises:
            RuntimeError: another file has been put in its place since it was mapped.
        """
        with self._lock:
            if self._reader is None:
                path, version = self.key
                assert version is not None, "memory that ranks share is no file to read"
                self._reader = FileReader(path, version)
            return self._reader

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

    def register_for(self, begin: int, size_bytes: int) -> None:
        """Register the file, unless what lies in a range of it is registered.

        Raises:
            RuntimeError: the system refuses.
        """
        start = self.shared.data_ptr()
        with self._lock:
            is_known = self._is_whole or all(
                any(
                    chunk.data_ptr() <= start + first and start + last <= _end(chunk)
                    for chunk in self._chunks
                )
                for first, last in split_at_chunks(begin, begin + size_bytes)
            )
        if not is_known:
            self.register()

    def close_reader(self) -> None:
        """Nobody reads the file any more."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def unregister(self) -> None:
        """Take back the registration, the last chunk first."""
        self._is_whole = False
        while self._chunks:
            unregister(self._chunks.pop())


class PrivateMappings:
    """The private mappings of what is attached at once: one for each file, see Note [Two mappings].

    It holds none of them: each lives as long as its views.
    """

    def __init__(self) -> None:
        self._found: weakref.WeakValueDictionary[MappedFile, PrivateMapping] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.Lock()  # several units are loaded at a time

    def find(self, file: MappedFile) -> PrivateMapping:
        """The mapping of a file, made where there is none."""
        with self._lock:
            mapping = self._found.get(file)
            if mapping is None:
                mapping = self._found[file] = file.map_privately()
            return mapping


def split_at_chunks(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a range of a file where no copy may cross from one registration into the next."""
    while begin < end:
        stop = min(end, (begin // CHUNK_BYTES + 1) * CHUNK_BYTES)
        yield begin, stop
        begin = stop


def _end(chunk: torch.Tensor) -> int:
    return chunk.data_ptr() + chunk.numel()


def find_in_file(tensor: torch.Tensor) -> FileBytes | None:
    """Where a host tensor's bytes lie in a file that was mapped for it, and is still there."""
    if tensor.device.type != "cpu" or not tensor.numel() or not tensor.is_contiguous():
        return None
    for mapping in list(_PRIVATE):
        offset = tensor.data_ptr() - mapping.address
        if not 0 <= offset < len(mapping):
            continue
        is_as_mapped = not mapping.is_written(offset, tensor.numel() * tensor.itemsize)
        if is_as_mapped and mapping.version == _version_at(mapping.path):
            return FileBytes(mapping.path, offset, tensor.shape, tensor.dtype)
    return None


def _version_at(path: Path) -> Version | None:
    with suppress(OSError):
        return version_of(path.stat())
    return None


_PRIVATE: weakref.WeakSet[PrivateMapping] = weakref.WeakSet()
_OPEN: dict[tuple[Path, Version | None], MappedFile] = {}
_OPEN_LOCK = threading.Lock()


def open_file(path: Path, *, at: Path | None = None) -> MappedFile:
    """A file whose shared mapping all its users have; each calls ``close_file`` at the end.

    A file that has replaced another one at its path gets mappings of its own.
    """
    version = None if at is not None else _version_at(path)
    with _OPEN_LOCK:
        file = _OPEN.get((path, version))
        if file is None:
            file = _OPEN[path, version] = MappedFile(path, version, at)
        file.users += 1
        return file


def close_file(file: MappedFile) -> None:
    """Let go of a file; the last user takes its registration back."""
    with _OPEN_LOCK:
        file.users -= 1
        if file.users == 0:
            file.unregister()
            file.close_reader()
            _OPEN.pop(file.key, None)


@atexit.register
def _unregister_all() -> None:
    """Before the driver goes: registered memory that vanishes makes it complain."""
    while _OPEN:
        _OPEN.popitem()[1].unregister()


class MappedSlab:
    """One unit's bytes in checkpoint files; tensors that need a cast lie in a slab beside them.

    Args:
        layout: where the tensors lie in a device slot.
        sources: for each of them where its bytes are.
        mappings: the private mappings of what is attached together with it.

    Attributes:
        views: the tensors, in the order of ``layout.specs``.
        segments: what a copy of the unit moves from memory; neighbours in the file that are
            neighbours in the slot are one segment, so that a packed unit is one copy.
        reads: what it moves from files that are read on the way; see ``use_couriers``.
        coded: what it moves in fewer bytes; see ``use_code``.
    """

    def __init__(
        self,
        layout: SlabLayout,
        sources: Sequence[StoredBytes | None],
        mappings: PrivateMappings,
    ) -> None:
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
        self.reads: tuple[FileRead, ...] = ()
        self.coded: CodedBytes | None = None
        self._files: dict[Path, MappedFile] = {}
        self._private: dict[MappedFile, PrivateMapping] = {}
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
            if file not in self._private:
                self._private[file] = mappings.find(file)
            self.views.append(self._private[file].view_at(source.offset, spec))
            self._ranges.append((file, source.offset, spec.size_bytes))
            self._add_segment(file, source.offset, offset, spec.size_bytes)

    def use_couriers(self, *, direct: bool = False) -> None:
        """Have the files read on their way in place of registering them.

        Args:
            direct: past the page cache.

        Raises:
            RuntimeError: a file is another one by now.
        """
        fits = zip(self.layout.offsets, self.is_filled, strict=True)
        offsets = [offset for offset, is_filled in fits if is_filled]
        pieces = [
            FilePiece(file.reader(), begin, offset, size)
            for (file, begin, size), offset in zip(self._ranges, offsets, strict=True)
        ]
        self.reads = plan_reads(pieces, max_bytes=BUFFER_BYTES, direct=direct)
        in_memory = set(self.layout.offsets) - set(offsets)
        self.segments = [segment for segment in self.segments if segment.offset in in_memory]

    def use_code(self, coded: CodedBytes) -> None:
        """Have coded bytes moved in place of those that were read on the way."""
        self.reads, self.coded = (), coded
        self.segments.extend(Segment(part, offset) for part, offset in coded.plain)

    @property
    def pinned(self) -> bool:
        """Whether copies from it are asynchronous."""
        if self.coded is not None and not self.coded.pinned:
            return False
        if self.reads or self.coded is not None:
            return self._side.pinned or not self._side.size_bytes
        return all(file.is_registered for file in self._files.values())

    @property
    def size_bytes(self) -> int:
        """Bytes held on the host: of shared memory a share, of files that are read anew none."""
        if self.coded is not None:
            return self.coded.size_bytes + self._side.size_bytes
        if self.reads:
            return self._side.size_bytes
        return sum(size // file.sharers for file, _, size in self._ranges) + self._side.size_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of them in checkpoint files."""
        is_elsewhere = self.reads or self.coded is not None
        return (
            0 if is_elsewhere else sum(size for file, _, size in self._ranges if file.sharers == 1)
        )

    @property
    def is_shared(self) -> bool:
        """Whether all bytes are in files."""
        return not self._side.size_bytes

    def pin(self) -> None:
        """Register the files, and the slab beside them.

        Raises:
            RuntimeError: the system refuses.
        """
        if not self.reads and self.coded is None:
            for file, begin, size in self._ranges:
                file.register_for(begin, size)
        self._side.pin()

    def pin_again(self) -> None:
        """Register files as a whole where parts were registered: all of them is copied from now on.

        Where the system refuses, copies come from memory that is not registered, and take longer.
        """
        with suppress(RuntimeError):
            for file in self._files.values():
                if file.is_registered:
                    file.register()

    @property
    def ranges(self) -> list[tuple[MappedFile, int, int]]:
        """What lies in files: the file, where it begins there, and its bytes."""
        return list(self._ranges)

    def locate(self, part: torch.Tensor) -> tuple[MappedFile, int]:
        """The file that a segment's bytes lie in, and where they begin there."""
        for file in self._files.values():
            begin = part.data_ptr() - file.shared.data_ptr()
            if 0 <= begin < file.size_bytes:
                return file, begin
        raise AssertionError("the part is none of this slab's files")

    def is_written(self) -> bool:
        """Whether a tensor was written in place, which the copies would not see."""
        ranges = self._merged_ranges()
        return any(self._private[file].is_written(offset, size) for file, offset, size in ranges)

    def close(self) -> None:
        """Let go of the files. No copy may be in flight; the tensors stay valid."""
        self._side.close()
        if self.coded is not None:
            self.coded.close()
        for path in list(self._files):
            close_file(self._files.pop(path))

    def _add_segment(self, file: MappedFile, offset: int, slot_offset: int, size: int) -> None:
        if self.segments:
            last, start = self.segments[-1]
            begins = last.data_ptr() - file.shared.data_ptr()
            same_file = 0 <= begins < file.size_bytes
            chunk = CHUNK_BYTES
            in_chunk = begins // chunk == (offset + size - 1) // chunk
            if same_file and in_chunk and offset - begins == slot_offset - start >= last.numel():
                self.segments[-1] = Segment(file.shared[begins : offset + size], start)
                return
        for begin, end in split_at_chunks(offset, offset + size):
            self.segments.append(Segment(file.shared[begin:end], slot_offset + begin - offset))

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


def check_supported(kind: HostMemory) -> None:
    """Raise ValueError where mapped memory is asked for and the system does not support it."""
    if (kind is HostMemory.MAPPED or kind.is_read) and not IS_SUPPORTED:
        raise ValueError(
            f"host_memory='{kind}' needs Linux and /proc/self/pagemap, which tells what was "
            "edited, and it cannot be read here. Pass host_memory='auto'."
        )


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


def find_in_files(bindings: Sequence[TensorBinding]) -> dict[torch.Tensor, FileBytes | None]:
    """Where the leaves of tensors that are in memory lie in files that are mapped for them."""
    there = [b for b in bindings if not b.tensor.is_meta]
    return {leaf: find_in_file(leaf) for b in there for leaf in leaves_of(b)}


GAP_BYTES = 1 << 20
"""A smaller gap is registered with its neighbours: that takes no longer than one more call."""


def register_ranges(slabs: Iterable[MappedSlab]) -> None:
    """Register only the bytes that these units have in files: no other units' are to be held.

    Raises:
        RuntimeError: the system refuses.
    """
    ranges: dict[MappedFile, list[tuple[int, int]]] = {}
    for slab in slabs:
        for file, begin, size in slab.ranges:
            ranges.setdefault(file, []).extend(split_at_chunks(begin, begin + size))
    for file, found in ranges.items():
        file.register(merge(found, file.size_bytes))


def merge(ranges: Sequence[tuple[int, int]], size_bytes: int) -> list[tuple[int, int]]:
    """Pages of a file that cover ranges of its bytes, as pieces to be registered.

    Args:
        ranges: where each begins and ends; none crosses a multiple of ``CHUNK_BYTES``.
        size_bytes: of the file.

    Returns:
        Where each piece begins and ends, in order; no two share a page, and each of ``ranges`` lies
        within one.
    """
    page = mmap.PAGESIZE
    pieces: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        first, last = begin // page * page, min(-(-end // page) * page, size_bytes)
        if pieces and first - pieces[-1][1] <= GAP_BYTES:
            before, until = pieces[-1]
            if before // CHUNK_BYTES == first // CHUNK_BYTES:
                pieces[-1] = before, max(until, last)
                continue
            assert until <= first, "a range crosses a chunk of the file"
        pieces.append((first, last))
    return pieces
