"""What a benchmark says of the machine, and how it reads its clocks and its memory."""

import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from fastvideo_lightning.offload.host.slab import HostSlab
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec

GIB = 1 << 30


class Deadline:
    """Seconds that a benchmark may take, so that it ends by itself and leaves what it has."""

    def __init__(self, budget_s: float) -> None:
        self._end = time.monotonic() + budget_s

    def allows(self, seconds: float) -> bool:
        """Whether so many seconds are left, with a tenth to spare."""
        return time.monotonic() + 1.1 * seconds < self._end


class DeviceMemory(NamedTuple):
    """Bytes of one process on a device."""

    reserved: int
    allocated: int


def find_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def describe_machine(device: torch.device) -> dict[str, str]:
    """Names and versions that a figure depends on."""
    commit = os.environ.get("COMMIT")  # where the checkout's history is not at hand
    if commit is None:
        # Of what is measured, not of where the benchmark was started.
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "transformers": version("transformers"),
        "commit": commit,
    }


class LinkProbe:
    """Copies from pinned host memory and nothing else, in between of what is measured.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._size_bytes = GIB if device.type == "cuda" else 1 << 24
        shape = torch.Size([self._size_bytes])
        self._slab = HostSlab(SlabLayout([TensorSpec.contiguous(shape, torch.uint8)]))
        self._slab.buffer.fill_(1)
        if device.type == "cuda":
            self._slab.pin()

    def measure(self) -> float:
        """Bytes per second of a copy, the mean of two."""
        target = torch.empty(self._size_bytes, dtype=torch.uint8, device=self._device)
        copy = partial(target.copy_, self._slab.buffer, non_blocking=True)
        return self._size_bytes / time_steps(copy, self._device)

    def rate(self, repeats: int) -> float:
        """The median of so many measurements."""
        return statistics.median(self.measure() for _ in range(repeats))

    def close(self) -> None:
        """Give the host memory back."""
        self._slab.close()


def measure_link_rate(device: torch.device) -> float:
    """Bytes per second of a copy from pinned host memory, the median of ten."""
    probe = LinkProbe(device)
    rate = probe.rate(10)
    probe.close()
    return rate


def time_steps(step: Callable[[], object], device: torch.device, count: int = 2) -> float:
    """Seconds of one of ``count`` steps in a row, behind one that is not counted, as in a video.

    Nothing synchronizes in between: what a step prefetches for the next is paid within.
    """
    step()
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - start) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3 / count


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def empty_caches(device: torch.device) -> DeviceMemory:
    """Let go of what nobody uses; returns what is left."""
    gc.collect()
    if device.type != "cuda":
        return DeviceMemory(0, 0)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return DeviceMemory(torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device))


def read_peak(device: torch.device) -> DeviceMemory:
    """The most since ``torch.cuda.reset_peak_memory_stats``."""
    if device.type != "cuda":
        return DeviceMemory(0, 0)
    torch.cuda.synchronize(device)
    return DeviceMemory(
        torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)
    )


def reset_peak(device: torch.device) -> None:
    """Begin to look for the most anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def pinned_by_torch() -> int:
    """Bytes that torch's own allocator holds pinned, which it rounds up."""
    if not torch.cuda.is_available():
        return 0
    stats = torch.cuda.host_memory_stats()
    return int(stats.get("allocated_bytes.current", stats.get("reserved_bytes.current", 0)))


def host_rss_bytes() -> int:
    """Bytes of this process in the host's memory, those of mapped files included."""
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0]) * 1024
