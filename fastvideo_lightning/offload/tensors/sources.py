"""Where the bytes of a weight come from before any memory holds them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch


class StoredBytes(Protocol):
    """One tensor of a file: what it is and where it lies.

    Attributes:
        shape: shape of the tensor.
        stored_dtype: dtype in the file.
        path: the file, where the bytes lie there plainly; otherwise None.
        offset: position of the first byte in ``path``, in bytes.
    """

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102
    @property
    def stored_dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def path(self) -> Path | None: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class FileBytes:
    """A tensor whose bytes lie plainly in a file."""

    path: Path
    offset: int
    shape: torch.Size
    stored_dtype: torch.dtype


class WeightSource(StoredBytes, Protocol):
    """One tensor of a checkpoint, and how to read it."""

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype this weight runs in when the run's device is ``device``."""
        ...

    def read_into(self, out: torch.Tensor) -> None:
        """Fill ``out``, a host tensor of this shape, casting to its dtype; safe from any thread."""
        ...
