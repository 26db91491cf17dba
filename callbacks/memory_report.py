"""MemoryReport: a timeline of the run by stage and step, and the file that shows it."""

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import lightning as L
import psutil
import torch
from torch import nn

from fastvideo_lightning.callbacks.placement import unwrap
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.registry import engines_of
from fastvideo_lightning.offload.timing import DeviceClock, Mark, TimedTransport
from fastvideo_lightning.report import (
    Sample,
    Span,
    Timeline,
    check_report_path,
    summary_lines,
    write_report,
)

_log = logging.getLogger(__name__)
_INTERVAL_S = 0.05
# Beyond so many samples every second one goes, and they are taken half as often.
_MAX_SAMPLES = 4000


class Planned(Protocol):
    """What a run is to take."""

    def to_dict(self) -> Mapping[str, object]:
        """Return what was predicted, as `MemoryReport` takes it."""


@dataclass
class _Moment:
    """Where a span begins or ends; its time is read once the device has passed it."""

    mark: Mark
    moved_bytes: int
    misses: int
    peak_bytes: int


@dataclass
class _OpenVideo:
    """The stages of the video that is being made, and what computing waited for in each."""

    begin: _Moment
    stages: list[tuple[str, int | None, _Moment]] = field(default_factory=list)
    waits: list[list[tuple[Mark, Mark]]] = field(default_factory=list)


class MemoryReport:
    """Measures memory, copies and stalls of a run, and shows them against the plan.

    The host does not wait for the device where it would not without. After the run, `timeline` has
    everything; five lines go to stderr. On a CPU, host memory and times are measured.

    A report that cannot be written after all is told of, and the videos are as without it.

    Args:
        path: A file that ends in `.html`, `.png` or `.json`; None writes none.
        plan: What was predicted, as `Plan.to_dict` has it; where a video is made again with less on
            the device, that plan takes its place.
        link_bytes_per_s: What the link can do.
        quiet: Leave the five lines out.

    Raises:
        ValueError, OSError: If the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        plan: Mapping[str, object] | None = None,
        link_bytes_per_s: float | None = None,
        quiet: bool = False,
    ) -> None:
        self.path = None if path is None else check_report_path(path)
        self.plan = plan
        self.link_bytes_per_s = link_bytes_per_s
        self.quiet = quiet
        self.timeline = Timeline("CPU")
        self._device = torch.device("cpu")
        self._clock = DeviceClock(self._device)
        self._engines: list[OffloadEngine] = []
        self._timed: list[TimedTransport] = []
        self._began_s = 0.0
        self._open: _OpenVideo | None = None
        self._sampler: _Sampler | None = None
        self._writes = self._goes_on = False

    def on_predict_start(self, fabric: L.Fabric, module: nn.Module) -> None:
        """Begin a timeline."""
        self._end()
        self._device = fabric.device
        self._clock = DeviceClock(fabric.device)
        self._writes = fabric.is_global_zero
        is_cuda = fabric.device.type == "cuda"
        name = torch.cuda.get_device_name(fabric.device) if is_cuda else "CPU"
        if not self._goes_on:
            link = self.link_bytes_per_s
            self.timeline = Timeline(name, plan=self.plan, link_bytes_per_s=link)
            self._began_s = time.perf_counter()
        self._goes_on = False
        self._begin(module)

    def on_replan(self, plan: Planned) -> None:
        """Memory ran out, and the run goes on under this plan: its timeline does too."""
        self._goes_on = True
        if self.timeline.plan is not None:
            self.timeline.plan = plan.to_dict()

    def on_predict_batch_start(self, module: nn.Module, batch: Mapping[str, object]) -> None:
        """A video begins with its encode stage, and after one that failed measuring begins anew."""
        if self._sampler is None:
            self._begin(module)
        self.timeline.prompts.append(str(batch["prompt"]))
        self._open = _OpenVideo(self._moment())

    def on_denoise_step_start(self, step: int) -> None:
        """Encoding is over when the first step begins."""
        if step == 0:
            self._close("encode", None)

    def on_denoise_step_end(self, step: int) -> None:
        """One step is over."""
        self._close("denoise", step)

    def on_predict_batch_end(self) -> None:
        """The video is decoded: read what was marked."""
        self._close("decode", None)
        self._read()

    def on_predict_end(self) -> None:
        """Write the report and say the five lines."""
        self._end()
        self.timeline.error = None  # of a video that failed: the run went on
        if not self._writes:
            return
        lines = [*summary_lines(self.timeline), *self._write()]
        if not self.quiet:
            print("\n".join(lines), file=sys.stderr)

    def on_exception(self, exception: BaseException) -> None:
        """Keep what there is, with the reason."""
        self.timeline.error = str(exception).partition("\n")[0] or type(exception).__name__
        self._read()
        self._end()
        if self._writes:
            self._write()

    def teardown(self) -> None:
        """Stop measuring."""
        self._end()

    def _moment(self) -> _Moment:
        is_cuda = self._device.type == "cuda"
        return _Moment(
            self._clock.mark(),
            sum(engine.stats.bytes_copied for engine in self._engines),
            sum(engine.stats.misses for engine in self._engines),
            torch.cuda.max_memory_reserved(self._device) if is_cuda else 0,
        )

    def _close(self, stage: str, step: int | None) -> None:
        if self._open is not None:
            self._open.stages.append((stage, step, self._moment()))
            self._open.waits.append([wait for timed in self._timed for wait in timed.take_waits()])

    def _read(self) -> None:
        """Turn the marks of a video into times: it has ended, so the device has passed them."""
        video, self._open = self._open, None
        if video is None or not video.stages:
            return
        last = video.stages[-1][2]
        whole_s = self._clock.seconds(video.begin.mark, last.mark)
        begin_s = time.perf_counter() - self._began_s - whole_s
        before = video.begin
        for (stage, step, moment), waits in zip(video.stages, video.waits, strict=True):
            self.timeline.spans.append(
                Span(
                    len(self.timeline.prompts) - 1,
                    stage,
                    step,
                    begin_s + self._clock.seconds(video.begin.mark, before.mark),
                    begin_s + self._clock.seconds(video.begin.mark, moment.mark),
                    moment.moved_bytes - before.moved_bytes,
                    sum(self._clock.seconds(begin, end) for begin, end in waits),
                    moment.misses - before.misses,
                    moment.peak_bytes,
                )
            )
            before = moment

    def _write(self) -> list[str]:
        """Write the file and return a line about it; the videos must not fail with it."""
        if self.path is None:
            return []
        try:
            return [f"Report: {write_report(self.timeline, self.path)}"]
        except (OSError, ValueError) as error:
            _log.error("%s", error)
            return []

    def _begin(self, module: nn.Module) -> None:
        self._engines = engines_of(unwrap(module))
        self._timed = [engine.time_waits(self._clock) for engine in self._engines]
        self._sampler = _Sampler(self.timeline.samples, self._device, self._began_s)
        self._sampler.start()

    def _end(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
        for engine, timed in zip(self._engines, self._timed, strict=True):
            engine.stop_timing(timed)
        self._engines, self._timed = [], []


class _Sampler:
    """Reads memory from a thread of its own, in constant memory however long the run."""

    def __init__(self, samples: list[Sample], device: torch.device, began_s: float) -> None:
        self._samples = samples
        self._device = device
        self._began_s = began_s
        self._interval_s = _INTERVAL_S
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-report", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._take()

    def _run(self) -> None:
        self._take()
        while not self._stopped.wait(self._interval_s):
            self._take()

    def _take(self) -> None:
        is_cuda = self._device.type == "cuda"
        self._samples.append(
            Sample(
                time.perf_counter() - self._began_s,
                torch.cuda.memory_reserved(self._device) if is_cuda else 0,
                torch.cuda.memory_allocated(self._device) if is_cuda else 0,
                self._process.memory_info().rss,
            )
        )
        if len(self._samples) > _MAX_SAMPLES:
            del self._samples[1::2]
            self._interval_s *= 2
