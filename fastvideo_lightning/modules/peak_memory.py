"""PeakMemory: what a device reserves at most meanwhile."""

from typing import Self

import torch


class PeakMemory:
    """Measures what a GPU reserves at most inside a context; None elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.reserved_gib: float | None = None
        self._device = device

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.reserved_gib = torch.cuda.max_memory_reserved(self._device) / 2**30
