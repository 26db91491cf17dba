"""MappedSlab: a unit's bytes in checkpoint files that are themselves the host master.

See Note [Two mappings] in ``mapped_file.py``. Where a file is not registered with the driver, its
bytes are read on their way: see Note [Couriers] in ``couriers.py``.
"""

import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fastvideo_lightning.offload import mapped_file
from fastvideo_lightning.offload.host.couriers import BUFFER_BYTES
from fastvideo_lightning.offload.host.file_reads import FilePiece, FileRead, plan_reads
from fastvideo_lightning.offload.host.slab import HostMemory, HostSlab, Segment
from fastvideo_lightning.offload.mapped_file import (
    MappedFile,
    close_file,
    open_file,
    split_at_chunks,
)
from fastvideo_lightning.offload.tensors.layout import SlabLayout
from fastvideo_lightning.offload.tensors.sources import StoredBytes


class MappedSlab:
    """One unit's bytes in checkpoint files; what needs a cast lies in a slab beside them.

    Args:
        layout: where the tensors lie in a device slot.
        sources: for each of them where its bytes are.

    Attributes:
        views: the tensors, in the order of ``layout.specs``.
        segments: what a copy of the unit moves from memory; neighbours in the file that are
            neighbours in the slot are one segment, so that a packed unit is one copy.
        reads: what it moves from files that are read on the way; see ``use_couriers``.
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
        self.reads: tuple[FileRead, ...] = ()
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
            self.views.append(file.view_at(source.offset, spec))
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

    @property
    def pinned(self) -> bool:
        """Whether copies from it are asynchronous."""
        if self.reads:
            return self._side.pinned or not self._side.size_bytes
        return all(file.is_registered for file in self._files.values())

    @property
    def size_bytes(self) -> int:
        """Bytes held on the host; of shared memory the share. Files are held if not read anew."""
        if self.reads:
            return self._side.size_bytes
        return sum(size // file.sharers for file, _, size in self._ranges) + self._side.size_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of them in checkpoint files."""
        return 0 if self.reads else sum(size for file, _, size in self._ranges if file.sharers == 1)

    @property
    def is_shared(self) -> bool:
        """Whether all bytes are in files."""
        return not self._side.size_bytes

    def pin(self) -> None:
        """Register the files, and the slab beside them.

        Raises:
            RuntimeError: the system refuses.
        """
        if not self.reads:
            for file, begin, size in self._ranges:
                file.register_for(begin, size)
        self._side.pin()

    def pin_again(self) -> None:
        """Register files as wholes of which this process has registered parts: all is copied now.

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
        return any(file.private.is_written(offset, size) for file, offset, size in ranges)

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
            chunk = mapped_file.CHUNK_BYTES
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
    """Raise ValueError where mapped memory is asked for and the system cannot have it."""
    if (kind is HostMemory.MAPPED or kind.is_read) and not mapped_file.IS_SUPPORTED:
        raise ValueError(
            f"host_memory='{kind}' needs Linux and /proc/self/pagemap, which tells what was "
            "edited, and it cannot be read here. Pass host_memory='auto'."
        )


def is_mappable(source: StoredBytes | None, dtype: torch.dtype) -> bool:
    """Whether the bytes of a weight in its file are those that it runs with."""
    return (
        mapped_file.IS_SUPPORTED
        and source is not None
        and source.path is not None
        and source.stored_dtype == dtype
        and source.offset % dtype.itemsize == 0
        and source.shape.numel() > 0
    )
