"""MappedFile: a checkpoint file in memory, registered with the driver, as its tensors' host copy.

Note [Two mappings]
A file is mapped twice. The shared, read-only mapping is registered with the CUDA driver and copied
from: all processes of a node and the page cache share its one copy. The module's parameters are
views of a private, writable mapping that is never registered: a write to a read-only mapping would
end the process. A write makes the kernel give that page a copy of its own, which the copies to the
device would not see; so before each run the page table tells whether a unit was written, and such a
unit moves to a slab of its own (``pagemap.py``).
"""

import atexit
import mmap
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fastvideo_lightning.offload import pagemap
from fastvideo_lightning.offload.host.file_reads import FileReader, Version, version_of
from fastvideo_lightning.offload.host.slab import register, unregister
from fastvideo_lightning.offload.tensors.layout import TensorSpec
from fastvideo_lightning.offload.tensors.sources import FileBytes

CHUNK_BYTES = 1 << 30
"""Memory is registered in pieces of this size: one registration of everything may be refused."""

IS_SUPPORTED = pagemap.is_readable()
"""Whether the system says which pages were written: Linux does, but for some containers."""

_READ_ONLY = 8  # cudaHostRegisterReadOnly


class PrivateMapping(mmap.mmap):
    """What parameters are views of; it lives as long as any of them."""

    path: Path
    version: Version | None
    address: int

    def is_written(self, offset: int, size_bytes: int) -> bool:
        """Whether a page in this range has a copy of its own."""
        return pagemap.is_written(self.address + offset, size_bytes)


class MappedFile:
    """A file in memory twice, see Note [Two mappings].

    Args:
        path: the file; its users know it by this name.
        version: of what lies there; None for memory that ranks share, which has a name alone.
        at: where it can be opened now, if not there.

    Attributes:
        shared: ``[size] uint8``, what copies read.
        private: the mapping that parameters are views of.
        sharers: processes that hold it together, where that is more than what a page cache does.
    """

    def __init__(self, path: Path, version: Version | None, at: Path | None = None) -> None:
        self.key = path, version
        self.users = 0
        self.sharers = 1
        self._chunks: list[torch.Tensor] = []
        self._is_whole = False
        self._reader: FileReader | None = None
        self._lock = threading.Lock()  # all units of the file register it
        with (at or path).open("rb") as file:
            self.private = PrivateMapping(file.fileno(), 0, access=mmap.ACCESS_COPY)
            read_only = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        # Nothing of ours writes to it. Said for good: other threads share the filters.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        self.shared = torch.frombuffer(read_only, dtype=torch.uint8)
        address = torch.frombuffer(self.private, dtype=torch.uint8).data_ptr()
        self.private.path, self.private.version, self.private.address = path, version, address
        if version is not None:
            _PRIVATE.add(self.private)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.shared.numel()

    @property
    def is_registered(self) -> bool:
        """Whether the driver knows the shared mapping, or what this process copies of it."""
        return bool(self._chunks)

    def view_at(self, offset: int, spec: TensorSpec) -> torch.Tensor:
        """What lies at a position of the file, as a tensor of the private mapping."""
        count = spec.shape.numel()
        flat = torch.frombuffer(self.private, dtype=spec.dtype, count=count, offset=offset)
        return flat.as_strided(spec.shape, spec.stride)

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
    """The mappings of a file, which all its users share; each calls ``close_file`` at the end.

    A file that was put in place of another is another file.
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
