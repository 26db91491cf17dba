"""What this machine gives, measured once and kept in the user's cache folder."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from platformdirs import user_cache_path

from fastvideo_lightning.offload.host.couriers import BUFFER_BYTES, NUM_READERS
from fastvideo_lightning.offload.host.file_reads import DIRECT_BYTES, FileReader, version_of
from fastvideo_lightning.offload.host.slab import HostSlab
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.plan.machine import Machine

_ROUNDS = 5
_LAUNCH_ROUNDS = 40  # half a second: other programs come and go on a host


def cache_file() -> Path:
    """Where the measurement is kept; `FASTVIDEO_LIGHTNING_CACHE` names another folder."""
    folder = os.environ.get("FASTVIDEO_LIGHTNING_CACHE")
    return (Path(folder) if folder else user_cache_path("fastvideo-lightning")) / "machine.json"


def load_probe() -> Machine | None:
    """Return what was measured for the GPU that is here; None where nothing was."""
    try:
        kept = json.loads(cache_file().read_text(encoding="utf-8"))
        machine = Machine(**kept)
    except (OSError, ValueError, TypeError):
        return None
    return machine if machine.name == torch.cuda.get_device_name() else None


def save_probe(machine: Machine) -> Path:
    """Keep a measurement; returns the file."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(asdict(machine), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def probe(device: torch.device) -> Machine:
    """Measure the GPU that is here, its link and its host, in some seconds and about 3 GiB."""
    machine = Machine(
        name=torch.cuda.get_device_name(device),
        source="measured here",
        memory_bytes=torch.cuda.mem_get_info(device)[1],
        link_bytes_per_s=measure_link(device),
        matmul_flops=measure_matmul(device),
        attention_flops=measure_attention(device),
        memory_bytes_per_s=measure_memory(device),
        launch_s=measure_launch(device),
        cpu_flops=measure_matmul(torch.device("cpu"), size=1024),
        host_memory_bytes=psutil.virtual_memory().total,
    )
    if device.type == "cuda":
        # A workspace of the products may lie in the memory of the 1 GiB copy and keep all of it.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    return machine


def with_reads(machine: Machine, folder: Path, size_bytes: int = 1 << 30) -> Machine:
    """The machine with what couriers read from a file in a folder, cached and past the cache.

    A file system that cannot be read past the cache, as one in memory, leaves the disk's rate.

    Raises:
        OSError: If the folder has no room for the file.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        piece = os.urandom(1 << 20)
        for _ in range(-(-size_bytes // len(piece))):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        path = Path(file.name)
        machine = replace(machine, cache_bytes_per_s=measure_reads(path))
        if not _reads_direct(path):
            return machine
        return replace(machine, disk_bytes_per_s=measure_reads(path, direct=True))


def measure_reads(path: Path, *, direct: bool = False) -> float:
    """Bytes per second that as many threads read from a file as couriers have."""
    reader = FileReader(path, version_of(path.stat()))
    size = path.stat().st_size // DIRECT_BYTES * DIRECT_BYTES
    room = torch.empty(NUM_READERS * BUFFER_BYTES + DIRECT_BYTES, dtype=torch.uint8)
    first = -(-room.data_ptr() // DIRECT_BYTES) * DIRECT_BYTES

    def read(thread: int) -> None:
        for offset in range(thread * BUFFER_BYTES, size, NUM_READERS * BUFFER_BYTES):
            count = min(BUFFER_BYTES, size - offset)
            reader.read(first + thread * BUFFER_BYTES, offset, count, direct=direct)

    def read_all() -> None:
        list(threads.map(read, range(NUM_READERS)))

    try:
        with ThreadPoolExecutor(NUM_READERS) as threads:
            return size / time_call(read_all, torch.device("cpu"), rounds=3)
    finally:
        reader.close()


def _reads_direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0)))
    except OSError:
        return False
    return hasattr(os, "O_DIRECT")


def measure_link(device: torch.device, size_bytes: int = 1 << 30) -> float:
    """Bytes per second of a copy from pinned host memory."""
    slab = HostSlab(SlabLayout([TensorSpec.contiguous(torch.Size([size_bytes]), torch.uint8)]))
    slab.buffer.fill_(1)
    target = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        slab.pin()
    try:
        took = time_call(lambda: target.copy_(slab.buffer, non_blocking=True), device)
    finally:
        slab.close()
    return size_bytes / took


def measure_matmul(device: torch.device, size: int = 8192) -> float:
    """Floating-point operations per second of a bf16 matrix product."""
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / time_call(lambda: left @ right, device)


def measure_attention(device: torch.device, tokens: int = 16384, heads: int = 12) -> float:
    """Floating-point operations per second of bf16 attention with heads of 128."""
    shape = (1, heads, tokens, 128)
    query, key, value = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
    attention = torch.nn.functional.scaled_dot_product_attention
    return 4 * tokens**2 * heads * 128 / time_call(lambda: attention(query, key, value), device)


def measure_memory(device: torch.device, size_bytes: int = 1 << 29) -> float:
    """Bytes per second that an elementwise kernel reads and writes."""
    numbers = torch.zeros(size_bytes // 2, device=device, dtype=torch.bfloat16)
    return 2 * size_bytes / time_call(lambda: numbers.add_(1), device)


def measure_launch(device: torch.device, num_blocks: int = 8) -> float:
    """Seconds that the host takes for one kernel of a denoiser, Python included.

    Timed on diffusers' blocks made so small that the device only waits for the host.
    """
    import diffusers as library

    from fastvideo_lightning.plan.cost import KERNELS_PER_BLOCK

    diffusers: Any = library
    narrow = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 32}
    with device:
        model = diffusers.WanTransformer3DModel(num_layers=num_blocks, **narrow).eval()
        inputs = {
            "hidden_states": torch.zeros(1, 16, 1, 8, 8, dtype=torch.bfloat16),
            "timestep": torch.zeros(1),
            "encoder_hidden_states": torch.zeros(1, 8, 32, dtype=torch.bfloat16),
        }

    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)

    @torch.no_grad()
    def step() -> None:
        model(**inputs)

    return time_call(step, device, rounds=_LAUNCH_ROUNDS) / (num_blocks * KERNELS_PER_BLOCK)


def time_call(call: Callable[[], object], device: torch.device, *, rounds: int = _ROUNDS) -> float:
    """Median seconds of a call that is done when the device is."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    took = []
    for _ in range(rounds):
        finish()
        begin = time.perf_counter()
        call()
        finish()
        took.append(time.perf_counter() - begin)
    return median(took)
