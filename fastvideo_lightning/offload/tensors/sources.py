"""Where the bytes of a weight come from, and what that means for where they lie in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.layout import TensorSpec


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


def source_spec(
    source: WeightSource, run_device: torch.device, device: torch.device | None = None
) -> TensorSpec:
    """The spec of a tensor that is yet to be read.

    Args:
        source: where it lies.
        run_device: the device of the run, which settles the dtype.
        device: where the tensor computes, by default ``run_device``; on the CPU it keeps the phase
            that it has in its file.
    """
    spec = TensorSpec.contiguous(source.shape, source.dtype_on(run_device))
    plain = source.path is not None and spec.dtype == source.stored_dtype
    return spec.at(source.offset) if plain and (device or run_device).type == "cpu" else spec


def find_source(binding: TensorBinding, sources: Mapping[str, WeightSource]) -> WeightSource:
    """The source of a tensor on meta, under any of its names.

    Raises:
        RuntimeError: there is none.
    """
    for name in binding.names:
        if name in sources:
            return sources[name]
    raise RuntimeError(
        f"{binding.fqn} is on the meta device and no checkpoint says where its bytes are. Load "
        "the module with VideoModule.from_pretrained(...), or give it real weights first."
    )


def file_position(source: StoredBytes | None) -> tuple[str, int]:
    """A sort key that puts weights in the order of their files."""
    if source is None or source.path is None:
        return "", 0
    return str(source.path), source.offset
