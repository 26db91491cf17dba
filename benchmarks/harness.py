"""What a benchmark says of the machine, and how it reads its clocks and its memory.

The options that benchmarks have in common.

Ways of running a transformer that is larger than one would like: ours and the alternatives.

A model in one mode, and what was measured of it.
"""

import gc
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import nn

from benchmarks.models import (
    CONFIGS,
    ON_CPU,
    RandomWan,
    make_inputs,
    make_transformer,
    streamed_bytes,
    weight_bytes,
)
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.modules.acceleration import compile_blocks
from fastvideo_lightning.offload.engine import OffloadEngine
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


RESULTS = Path(__file__).parent / "results"
PATH = click.Path(path_type=Path)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


class Numbers(click.ParamType):
    """Whole numbers with something between: ``1,17`` or ``480x832``."""

    def __init__(self, separator: str) -> None:
        self.name = f"N{separator}N"
        self._separator = separator

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Read the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(map(int, value.split(self._separator)))
        except ValueError:
            self.fail(f"expected whole numbers such as {self.name}, got {value!r}", param, ctx)


class Names(click.ParamType):
    """Some of a few names, with commas between."""

    name = "NAME,NAME"

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Read the names."""
        names = value if isinstance(value, tuple) else tuple(value.split(","))
        for name in names:
            if name not in self._known:
                self.fail(f"there is no {name!r}; there are {', '.join(self._known)}", param, ctx)
        return names


def model(default: str = "wan-1.3b") -> Option:
    """Which shape of model."""
    known = click.Choice(sorted(CONFIGS))
    return click.option("--model", type=known, default=default, show_default=True)


def check_models(*models: str, instead: str = "--model wan-tiny") -> None:
    """Refuse models that a machine without a GPU would take hours or all its memory for.

    Raises:
        click.UsageError: naming what to pass ``instead``.
    """
    if find_device().type == "cpu" and any(model not in ON_CPU for model in models):
        raise click.UsageError(f"this machine has no GPU; pass `{instead}`")


def frames(default: str = "1,17,81") -> Option:
    """How long the videos are."""
    return click.option(
        "--frames", type=Numbers(","), default=default, show_default=True, help="Of the videos."
    )


def size(default: str = "480x832", *, flag: str = "--size", of: str = "") -> Option:
    """How large the videos are."""
    text = f"Height and width{of}."
    return click.option(flag, type=Numbers("x"), default=default, show_default=True, help=text)


def limit(default: float) -> Option:
    """How long the benchmark may take: it ends by itself and leaves what it has."""
    return click.option(
        "--limit-s", default=default, show_default=True, help="Begin nothing after it."
    )


def folder(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where checkpoints of random weights are kept from one benchmark to the next."""
    return click.option(
        "--folder",
        type=PATH,
        default=Path(tempfile.gettempdir()) / "random-wan",
        show_default=True,
        help="Of the checkpoints of random weights; up to 40 GB for wan-14b.",
    )(command)


def output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where results go."""
    return click.option("--output", type=PATH, default=RESULTS, show_default=True)(command)


def name(default: str | None = None) -> Option:
    """What the files of results are called, without their endings."""
    return click.option("--name", default=default, show_default=True, help="Of the result files.")


OURS_BYTES_PER_S, PEERS_BYTES_PER_S = 2e9, 5e8


@dataclass
class Placed:
    """A model that a mode has set up.

    Attributes:
        streamed_bytes: what it copies to the device in every step.
        host_bytes: what it holds on the host, pinned or mapped or as it is.
        host_weight_bytes: bytes of the weights that are kept there.
        close: takes it down.
    """

    streamed_bytes: int = 0
    host_bytes: int = 0
    host_weight_bytes: int = 0
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Mode:
    """One way to run a model.

    Attributes:
        attach: sets a model up.
        beside: the mode that it is compared with: how fast it would be with all weights there.
        like: the mode whose output it is to give, bit for bit.
        party: modes of one party are in memory at the same time, beside the resident one.
        needs_gpu: whether it cannot be tried on a CPU.
        setup_bytes_per_s: the slowest that it was seen to be set up, for knowing whether there is
            time for it.
        calls: forwards of a step; 2 with guidance.
    """

    attach: Callable[[RandomWan, torch.device], Placed]
    beside: str = "resident"
    like: str = "resident"
    party: str = "ours"
    needs_gpu: bool = False
    setup_bytes_per_s: float = OURS_BYTES_PER_S
    calls: int = 1


def attach_in_batch(
    callback: Placement, model: nn.Module, device: torch.device
) -> tuple[OffloadEngine | None, Callable[[], None]]:
    """Attach one of our callbacks, in a batch as the predict loop would have it.

    Returns:
        Its engine, where it has one, and what takes it down.
    """
    engine = callback.attach(model, device).engine
    callback.on_predict_batch_start()

    def close() -> None:
        callback.on_predict_batch_end()
        callback.detach()

    return engine, close


def place(callback: Placement, model: RandomWan, device: torch.device) -> Placed:
    """Attach one of our callbacks."""
    engine, close = attach_in_batch(callback, model, device)
    if engine is None:
        return Placed(close=close)
    names = tuple(f"{unit.fqn}." for unit in engine.units)
    on_host = sum(
        source.shape.numel() * source.stored_dtype.itemsize
        for fqn, source in model.weight_sources.items()
        if fqn.startswith(names)
    )
    moved = sum(unit.copied_bytes for unit in engine.units)
    return Placed(moved, engine.store.size_bytes, on_host, close)


def resident(model: RandomWan, device: torch.device) -> Placed:
    """All weights on the device."""
    return place(Resident(""), model, device)


def graphed_resident(model: RandomWan, device: torch.device) -> Placed:
    """All weights on the device, a step repeated by it."""
    return place(Resident("", cuda_graphs=True), model, device)


def streamed(
    host_memory: str | dict[str, int],
    *,
    resident_share: float = 0.0,
    num_slots: int = 2,
    cuda_graphs: bool = False,
    pair_guidance: bool = False,
    weight_compression: str = "none",
) -> Mode:
    """That kind of host memory, so many slots, and a share of the blocks resident."""

    def attach(model: RandomWan, device: torch.device) -> Placed:
        count = round(resident_share * len(model.blocks))
        callback = LayerwiseOffload(
            "blocks",
            resident_blocks=count,
            host_memory=host_memory,
            num_slots=num_slots,
            cuda_graphs=cuda_graphs,
            pair_guidance=pair_guidance,
            weight_compression=weight_compression,
        )
        return place(callback, model, device)

    return Mode(attach)


def guided(mode: Mode, *, party: str = "guided") -> Mode:
    """The same with guidance: two calls a step, of which the first one's result is read last."""
    return replace(
        mode,
        beside="guided-resident",
        like="guided-resident",
        party=party,
        calls=2,
        needs_gpu=True,
    )


def compiled(mode: Mode, *, beside: str) -> Mode:
    """The same with every block compiled; blocks of one kind share their graphs."""

    def attach(model: RandomWan, device: torch.device) -> Placed:
        placed = mode.attach(model, device)
        torch._dynamo.config.recompile_limit = 64  # for each number of frames, in two modes
        compile_blocks(model, "")
        return placed

    return Mode(attach, beside=beside, like=beside, party="compiled", needs_gpu=True)


def group_offload(party: str, *, kind: str, record_stream: bool) -> Mode:
    """Diffusers' group offloading with a stream."""

    def attach(model: RandomWan, device: torch.device) -> Placed:
        before = pinned_by_torch()
        load_on_host(model)
        model.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
            use_stream=True,
            record_stream=record_stream,
            non_blocking=True,
        )
        return Placed(streamed_bytes(model), pinned_by_torch() - before, weight_bytes(model))

    return Mode(attach, party=party, needs_gpu=True, setup_bytes_per_s=PEERS_BYTES_PER_S)


def sequential_offload(model: RandomWan, device: torch.device) -> Placed:
    """Accelerate's offload of every leaf for itself: ``enable_sequential_cpu_offload``."""
    from accelerate import cpu_offload

    load_on_host(model)
    cpu_offload(model, execution_device=device)
    return Placed(weight_bytes(model), weight_bytes(model), weight_bytes(model))


def model_offload(model: RandomWan, device: torch.device) -> Placed:
    """Accelerate's offload of whole models: ``enable_model_cpu_offload``; in once per video."""
    from accelerate import cpu_offload_with_hook

    load_on_host(model)
    cpu_offload_with_hook(model, device)
    return Placed(0, weight_bytes(model), weight_bytes(model))


def load_on_host(model: RandomWan) -> None:
    """Ordinary host weights, as a library's loader leaves them."""
    loader = Resident("")
    loader.attach(model, "cpu")
    loader.detach()


MODES: dict[str, Mode] = {
    "resident": Mode(resident),
    "streamed-mapped": streamed("mapped"),
    "streamed-pinned": streamed("pinned"),
    "streamed-courier": streamed("courier"),
    "streamed-disk": Mode(
        streamed("disk").attach, party="disk", setup_bytes_per_s=OURS_BYTES_PER_S
    ),
    "streamed-held-in-part": Mode(streamed({"mapped": 23, "disk": 17}).attach, party="disk"),
    "streamed-half-resident": streamed("mapped", resident_share=0.5),
    "streamed-tenth-resident": streamed("mapped", resident_share=0.1),
    "streamed-three-slots": streamed("mapped", num_slots=3),
    "streamed-three-slots-tenth-resident": streamed("mapped", resident_share=0.1, num_slots=3),
    "graphed-resident": Mode(graphed_resident, beside="graphed-resident", party="graphed"),
    "graphed-streamed": Mode(
        streamed("mapped", cuda_graphs=True).attach, beside="graphed-resident", party="graphed"
    ),
    "compiled-resident": compiled(Mode(resident), beside="compiled-resident"),
    "compiled-streamed": compiled(streamed("mapped"), beside="compiled-resident"),
    "streamed-lossless": streamed("auto", weight_compression="lossless"),
    "compiled-lossless": compiled(
        streamed("auto", weight_compression="lossless"), beside="compiled-resident"
    ),
    "guided-resident": guided(Mode(resident)),
    "guided-streamed": guided(streamed("mapped")),
    "guided-paired": guided(streamed("mapped", pair_guidance=True)),
    "guided-paired-lossless": guided(
        streamed("auto", pair_guidance=True, weight_compression="lossless")
    ),
    "guided-disk": guided(streamed("disk"), party="guided-disk"),
    "guided-paired-disk": guided(streamed("disk", pair_guidance=True), party="guided-disk"),
    "group-block-record": group_offload("gbr", kind="block_level", record_stream=True),
    "group-leaf-record": group_offload("glr", kind="leaf_level", record_stream=True),
    "group-block": group_offload("gb", kind="block_level", record_stream=False),
    "group-leaf": group_offload("gl", kind="leaf_level", record_stream=False),
    "streamed-pageable": Mode(streamed("pageable").attach, party="pageable"),
    "model-offload": Mode(model_offload, party="model", setup_bytes_per_s=PEERS_BYTES_PER_S),
    "sequential-offload": Mode(
        sequential_offload, party="sequential", setup_bytes_per_s=PEERS_BYTES_PER_S
    ),
}
"""In the order in which they are measured: what matters most comes first."""


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
        """One forward of the transformer, or two with guidance."""
        with torch.no_grad():
            (output,) = self.model(**inputs, return_dict=False)
            if MODES[self.mode].calls == 1:
                return output
            without = inputs | {"encoder_hidden_states": -inputs["encoder_hidden_states"]}
            (other,) = self.model(**without, return_dict=False)
            return output + 2 * (output - other)

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
