"""The page table of this process: which pages of a private mapping were written.

See ``/proc/PID/pagemap``, https://docs.kernel.org/admin-guide/mm/pagemap.html.
"""

import mmap
import os
import sys
from pathlib import Path

import torch

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
