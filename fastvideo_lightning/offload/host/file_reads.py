"""FileRead: which bytes of a file go where in a slot, and who reads them.

Direct reads (``O_DIRECT``) begin and end at multiples of 4096 bytes; tensors in a file do not. So
every read begins at such a multiple, and its runs say which bytes of it go where.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

DIRECT_BYTES = 4096
"""What direct reads are aligned to; a multiple of every disk's sector."""

GAP_BYTES = 1 << 16
"""Tensors with a smaller gap between them are read at once, the gap included."""

Version = tuple[int, int, int, int]
"""Tells a file from another one at the same path: device, inode, size, time of change."""


def version_of(status: os.stat_result) -> Version:
    """The version that a file's status tells."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Run(NamedTuple):
    """Bytes of a read that go to one place: from ``begin`` in the read to ``offset`` in a slot."""

    begin: int
    offset: int
    size_bytes: int


class Reader(Protocol):
    """Whatever fills memory with a file's bytes; safe from any thread."""

    def read(self, address: int, offset: int, size_bytes: int, *, direct: bool = False) -> None:
        """Fill ``size_bytes`` at ``address`` with what begins at ``offset`` in the file."""
        ...


@dataclass(frozen=True, slots=True)
class FileRead:
    """A range of a file that one courier holds.

    Attributes:
        reader: reads the file.
        offset: where the range begins in the file, a multiple of ``DIRECT_BYTES``.
        size_bytes: its length.
        runs: what of it goes where.
        direct: it is read past the page cache.
    """

    reader: Reader
    offset: int
    size_bytes: int
    runs: tuple[Run, ...]
    direct: bool = False

    def fill(self, address: int) -> None:
        """Read the whole range to ``address``, where there is room for it up to the next sector."""
        self.reader.read(address, self.offset, self.size_bytes, direct=self.direct)

    def fill_slot(self, address: int) -> None:
        """Read every run straight to its place in a slot at ``address`` in host memory."""
        for run in self.runs:
            self.reader.read(address + run.offset, self.offset + run.begin, run.size_bytes)


class FilePiece(NamedTuple):
    """Bytes of a file and their place in a slot."""

    reader: Reader
    offset: int
    slot_offset: int
    size_bytes: int


def plan_reads(
    pieces: Iterable[FilePiece], *, max_bytes: int, direct: bool = False
) -> tuple[FileRead, ...]:
    """Group pieces that lie near each other in a file into reads.

    Args:
        pieces: in the order of their files.
        max_bytes: of one read, up to the next sector; longer pieces are split.
        direct: read past the page cache.
    """
    reads: list[FileRead] = []
    for piece in pieces:
        for part in _split(piece, max_bytes):
            last = reads[-1] if reads else None
            if last is not None and _is_near(last, part, max_bytes):
                reads[-1] = _extend(last, part)
            else:
                begin = part.offset // DIRECT_BYTES * DIRECT_BYTES
                run = Run(part.offset - begin, part.slot_offset, part.size_bytes)
                end = part.offset + part.size_bytes
                reads.append(FileRead(part.reader, begin, end - begin, (run,), direct))
    return tuple(reads)


def _split(piece: FilePiece, max_bytes: int) -> Iterator[FilePiece]:
    """Cut a piece at multiples of ``max_bytes`` in its file."""
    reader, offset, slot_offset, size = piece
    while size:
        part = min(size, max_bytes - offset % max_bytes)
        yield FilePiece(reader, offset, slot_offset, part)
        offset, slot_offset, size = offset + part, slot_offset + part, size - part


def _is_near(read: FileRead, part: FilePiece, max_bytes: int) -> bool:
    gap = part.offset - (read.offset + read.size_bytes)
    fits = part.offset + part.size_bytes - read.offset <= max_bytes
    return read.reader is part.reader and 0 <= gap <= GAP_BYTES and fits


def _extend(read: FileRead, part: FilePiece) -> FileRead:
    begin = part.offset - read.offset
    last = read.runs[-1]
    follows = begin - last.begin == part.slot_offset - last.offset == last.size_bytes
    if follows:  # neighbours in the file and in the slot are one copy
        run = Run(last.begin, last.offset, last.size_bytes + part.size_bytes)
        runs = (*read.runs[:-1], run)
    else:
        runs = (*read.runs, Run(begin, part.slot_offset, part.size_bytes))
    return replace(read, size_bytes=begin + part.size_bytes, runs=runs)


class FileReader:
    """Reads one version of a file, whatever happens to its name.

    Args:
        path: the file.
        version: what is expected there.

    Attributes:
        close: closes the file, while nothing is read; the same happens when nobody holds this.

    Raises:
        RuntimeError: another file lies there by now.
    """

    def __init__(self, path: Path, version: Version) -> None:
        self.path = path
        self._version = version
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._direct: int | None = None
        self._open = [self._file]
        self.close = weakref.finalize(self, _close, self._open)
        self._check()

    def read(self, address: int, offset: int, size_bytes: int, *, direct: bool = False) -> None:
        """Fill memory with bytes of the file.

        Args:
            address: where they go, aligned to ``DIRECT_BYTES`` for a direct read.
            offset: where they begin in the file, likewise.
            size_bytes: how many; for a direct read there is room up to the next sector.
            direct: past the page cache, where the file system can.

        Raises:
            RuntimeError: the file has changed since it was opened, or cannot be read.
        """
        file = self._direct_file() if direct else self._file
        room = size_bytes if file == self._file else -(-size_bytes // DIRECT_BYTES) * DIRECT_BYTES
        memory = memoryview((ctypes.c_char * room).from_address(address)).cast("B")
        done = 0
        try:
            while done < size_bytes:
                got = os.preadv(file, [memory[done:]], offset + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise RuntimeError(
                f"{self.path} could not be read while its weights were streamed ({error}). Check "
                "the disk that it lies on, then load the model again."
            ) from error
        self._check(ended=done < size_bytes)

    def _direct_file(self) -> int:
        """The file opened past the page cache, or as usual where its file system refuses."""
        with self._lock:
            if self._direct is None:
                try:  # this file, not one that was put in its place
                    path = f"/proc/self/fd/{self._file}"
                    self._direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
                    self._open.append(self._direct)
                except (OSError, AttributeError):
                    self._direct = self._file
            return self._direct

    def _check(self, *, ended: bool = False) -> None:
        if ended or version_of(os.fstat(self._file)) != self._version:
            raise RuntimeError(
                f"{self.path} has changed since it was loaded, so its weights cannot be streamed "
                "from it any more. Load the model again."
            )


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
