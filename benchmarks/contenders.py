"""A model in one mode, and what was measured of it."""

import gc
import statistics
import time
from pathlib import Path

import torch

from benchmarks.harness import empty_caches, read_peak, reset_peak, synchronize, time_steps
from benchmarks.models import RandomWan, make_inputs, make_transformer
from benchmarks.modes import MODES, Placed

LONG_STEP_S = 1.0  # of a step so long, one is timed at a time


class Contender:
    """A model in one mode.

    Args:
        mode: a key of ``MODES``.
        model_name: a key of ``CONFIGS``.
        device: where it computes.
        folder: where the checkpoint is.
        size: height and width of the video.
    """

    def __init__(
        self,
        mode: str,
        model_name: str,
        device: torch.device,
        folder: Path,
        size: tuple[int, int],
    ) -> None:
        self.mode = mode
        self.device = device
        self._size = size
        self.model: RandomWan = make_transformer(model_name, folder)
        self.seconds: dict[int, list[float]] = {}
        self._reserved: dict[int, int] = {}
        self._allocated: dict[int, int] = {}
        self._is_equal: dict[int, bool] = {}
        self._beside_s: dict[int, float] = {}
        self._link_rate: dict[int, float] = {}
        self._before = empty_caches(device)
        begin = time.perf_counter()
        self.placed: Placed = MODES[mode].attach(self.model, device)
        synchronize(device)
        self.setup_s = time.perf_counter() - begin

    def step(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """One forward of the transformer."""
        with torch.no_grad():
            return self.model(**inputs, return_dict=False)[0]

    def measure_memory(self, frames: int) -> None:
        """Two steps on their own, and what they take.

        Args:
            frames: of the video.
        """
        inputs = make_inputs(self.model, frames, self._size, device=self.device)
        empty_caches(self.device)
        reset_peak(self.device)
        self.step(inputs)
        self.step(inputs)
        peak = read_peak(self.device)
        self._reserved[frames] = peak.reserved - self._before.reserved
        self._allocated[frames] = peak.allocated - self._before.allocated

    def check_output(self, frames: int, expected: dict[tuple[str, int], torch.Tensor]) -> None:
        """A step that is to give what another mode did.

        Args:
            frames: of the video.
            expected: outputs by mode and frames; each contender puts its own there.
        """
        inputs = make_inputs(self.model, frames, self._size, device=self.device)
        output = expected[self.mode, frames] = self.step(inputs).cpu()
        like = expected.get((MODES[self.mode].like, frames))
        if like is not None:
            self._is_equal[frames] = torch.equal(output, like)

    def time_once(self, frames: int) -> float:
        """Time a step or two; returns the seconds that this took in all."""
        started = time.monotonic()
        inputs = make_inputs(self.model, frames, self._size, device=self.device)
        seconds = self.seconds.setdefault(frames, [])
        count = 1 if seconds and seconds[-1] > LONG_STEP_S else 2
        seconds.append(time_steps(lambda: self.step(inputs), self.device, count))
        return time.monotonic() - started

    def compare(self, frames: int, others: dict[str, list[float]], link_rate: float) -> None:
        """Keep what the link gave and how long the mode beside took, timed in the same turns."""
        self._link_rate[frames] = link_rate
        if beside := others.get(MODES[self.mode].beside):
            self._beside_s[frames] = statistics.median(beside)

    def close(self) -> None:
        """Take the model down and give back what it held."""
        self.placed.close()
        self.placed = Placed(
            self.placed.streamed_bytes, self.placed.host_bytes, self.placed.host_weight_bytes
        )
        del self.model
        gc.collect()
        empty_caches(self.device)
        if self.device.type == "cuda":
            torch._C._host_emptyCache()  # what peers had pinned

    def rows(self) -> list[dict[str, object]]:
        """What was measured, a row for each number of frames."""
        return [
            {
                "mode": self.mode,
                "beside": MODES[self.mode].beside,
                "frames": frames,
                "step_ms": statistics.median(seconds) * 1e3,
                "min_ms": min(seconds) * 1e3,
                "max_ms": max(seconds) * 1e3,
                "beside_ms": self._beside_s[frames] * 1e3 if frames in self._beside_s else None,
                "link_bytes_per_s": self._link_rate.get(frames),
                "rounds": len(seconds),
                "reserved_gb": self._reserved.get(frames, 0) / 1e9,
                "allocated_gb": self._allocated.get(frames, 0) / 1e9,
                "streamed_bytes": self.placed.streamed_bytes,
                "host_bytes": self.placed.host_bytes,
                "host_weight_bytes": self.placed.host_weight_bytes,
                "setup_s": self.setup_s,
                "equal_to_resident": self._is_equal.get(frames),
            }
            for frames, seconds in self.seconds.items()
        ]
