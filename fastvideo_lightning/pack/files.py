"""Packed files on disk: streamed to a temporary name, read back, and only then given their own."""

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.weights import StoredWeight
from fastvideo_lightning.output.files import sync, sync_folder, whole_or_nothing
from fastvideo_lightning.pack.layout import PackedFile, PackedTensor

CHUNK_BYTES = 32 << 20
"""What is in memory at a time; a source that is cast is mapped beside it."""

Advance = Callable[[int], None]
"""Told the bytes that were written or read back."""


def write_file(packed: PackedFile, path: Path, advance: Advance) -> None:
    """Write a file and read it back before it takes its name.

    Raises:
        CheckpointError: If it reads back otherwise than it was written, or a source has shrunk.
        OSError: If the disk refuses.
    """
    with whole_or_nothing(path, partial_path(path)) as partial:
        with partial.open("wb") as file:
            file.write(packed.header)
            checksums = [_write_tensor(tensor, file, advance) for tensor in packed.tensors]
            sync(file)
        verify_file(packed, checksums, partial, advance)
    sync_folder(path.parent)


def verify_file(packed: PackedFile, checksums: list[int], path: Path, advance: Advance) -> None:
    """Read a file from the disk and compare header, size and the checksum of every tensor.

    Raises:
        CheckpointError: If anything differs; names the tensor.
    """
    again = "The disk may be failing: check it, then run the same command again."
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # so that the bytes come from the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if file.read(len(packed.header)) != packed.header:
            raise CheckpointError(f"{path}: the header reads back otherwise than written. {again}")
        for tensor, written in zip(packed.tensors, checksums, strict=True):
            if _checksum(file, tensor.size_bytes, advance) != written:
                raise CheckpointError(
                    f"{path}: {tensor.name!r} reads back otherwise than written. {again}"
                )
        if file.read(1):
            raise CheckpointError(f"{path} is longer than what was written. {again}")


def is_finished(packed: PackedFile, path: Path) -> bool:
    """Whether a file was written in full before: it then has its name, size and header."""
    if not path.is_file() or path.stat().st_size != packed.size_bytes:
        return False
    with path.open("rb") as file:
        return file.read(len(packed.header)) == packed.header


def write_bytes(content: bytes, path: Path) -> None:
    """Write a small file as a whole or not at all."""
    with whole_or_nothing(path, partial_path(path)) as partial, partial.open("wb") as file:
        file.write(content)
        sync(file)
    sync_folder(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file with its time of change, unless it is there already."""
    found = source.stat()
    if path.is_file():
        there = path.stat()
        if (there.st_size, there.st_mtime_ns) == (found.st_size, found.st_mtime_ns):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path, partial_path(path)) as partial:
        with source.open("rb") as original, partial.open("wb") as copy:
            shutil.copyfileobj(original, copy, CHUNK_BYTES)
            sync(copy)
        os.utime(partial, ns=(found.st_atime_ns, found.st_mtime_ns))


def partial_path(path: Path) -> Path:
    """The name of a file while it is written; one that a killed run left is written anew."""
    return path.with_name(f".{path.name}.partial")


def _write_tensor(tensor: PackedTensor, file: BinaryIO, advance: Advance) -> int:
    checksum = 0
    for chunk in _chunks(tensor):
        raw = memoryview(chunk.view(torch.uint8).numpy())  # type: ignore[arg-type]
        checksum = zlib.crc32(raw, checksum)
        file.write(raw)
        advance(len(raw))
    return checksum


def _chunks(tensor: PackedTensor) -> Iterator[torch.Tensor]:
    """Yield the tensor's elements in its dtype, flat, a few at a time; each over the last one."""
    total, content = tensor.shape.numel(), tensor.content
    if not total:
        return
    if isinstance(content, StoredWeight) and content.path is None:
        content = content.as_host_tensor(tensor.dtype)  # decoded, one weight at a time
    memory = torch.zeros(min(total, CHUNK_BYTES // tensor.dtype.itemsize), dtype=tensor.dtype)
    flat = content.detach().reshape(-1) if isinstance(content, torch.Tensor) else None
    for start in range(0, total, len(memory)):
        chunk = memory[: total - start]
        if flat is not None:
            chunk.copy_(flat[start : start + len(chunk)])
        elif isinstance(content, StoredWeight):
            _part(content, start, len(chunk)).read_into(chunk)
        yield chunk


def _part(source: StoredWeight, start: int, count: int) -> StoredWeight:
    """The elements `start` to `start + count` of a stored weight, as a weight of their own."""
    stored = source.tensor
    offset = stored.offset + start * stored.dtype.itemsize
    return replace(source, tensor=replace(stored, offset=offset, shape=torch.Size([count])))


def _checksum(file: BinaryIO, size_bytes: int, advance: Advance) -> int:
    checksum, left = 0, size_bytes
    while left and (raw := file.read(min(left, CHUNK_BYTES))):
        checksum = zlib.crc32(raw, checksum)
        left -= len(raw)
        advance(len(raw))
    return -1 if left else checksum
