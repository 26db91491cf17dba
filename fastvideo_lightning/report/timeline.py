"""Timeline: what was measured of a run, as plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, in bytes.

    Attributes:
        at_s: Seconds since the run began.
        reserved_bytes: What the device allocator holds; 0 without a GPU.
        allocated_bytes: What of it is in use.
        host_bytes: Resident memory of the process.
    """

    at_s: float
    reserved_bytes: int
    allocated_bytes: int
    host_bytes: int


@dataclass(frozen=True)
class Span:
    """A stage of a video, or one of its denoising steps.

    Attributes:
        video: Which video of the run, from 0.
        stage: `encode`, `denoise` or `decode`.
        step: Which step; None for what is no step.
        begin_s: Seconds since the run began.
        end_s: When it ended.
        moved_bytes: Copied to the device meanwhile.
        stall_s: How long computing waited for copies.
        misses: Blocks that nobody had fetched ahead of their turn.
        peak_reserved_bytes: Most that the device allocator held so far in this video.
    """

    video: int
    stage: str
    step: int | None
    begin_s: float
    end_s: float
    moved_bytes: int = 0
    stall_s: float = 0.0
    misses: int = 0
    peak_reserved_bytes: int = 0

    @property
    def elapsed_s(self) -> float:
        """How long it took."""
        return self.end_s - self.begin_s


@dataclass
class Timeline:
    """A run.

    Attributes:
        device: Name of the GPU, or `CPU`.
        spans: In the order of time.
        samples: In the order of time.
        prompts: Of the videos.
        link_bytes_per_s: What the link could have moved; None where it is not known.
        plan: What was predicted, as `Plan.to_dict` has it; None without a plan.
        error: Why the run ended early, or None.
    """

    device: str
    spans: list[Span] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    link_bytes_per_s: float | None = None
    plan: Mapping[str, Any] | None = None
    error: str | None = None

    @property
    def has_gpu(self) -> bool:
        """Whether there was device memory to measure."""
        return self.device != "CPU"

    @property
    def has_copies(self) -> bool:
        """Whether weights could have been copied, or were: on a CPU a callback can stream too."""
        return self.has_gpu or any(span.moved_bytes for span in self.spans)

    @property
    def elapsed_s(self) -> float:
        """From the begin of the run to its last measurement."""
        ends = [span.end_s for span in self.spans] + [sample.at_s for sample in self.samples]
        return max(ends, default=0.0)

    def stages(self, video: int) -> list[Span]:
        """One span for each stage of a video; the steps of denoising make one."""
        joined = []
        for stage in STAGES:
            parts = [s for s in self.spans if s.video == video and s.stage == stage]
            if parts:
                joined.append(
                    Span(
                        video,
                        stage,
                        None,
                        parts[0].begin_s,
                        parts[-1].end_s,
                        sum(part.moved_bytes for part in parts),
                        sum(part.stall_s for part in parts),
                        sum(part.misses for part in parts),
                        self._peak(parts),
                    )
                )
        return joined

    def steps(self, video: int) -> list[Span]:
        """The denoising steps of a video."""
        return [s for s in self.spans if s.video == video and s.step is not None]

    def link_utilisation(self, span: Span) -> float | None:
        """Share of what the link could have moved in a span; None where that is not known."""
        if not self.link_bytes_per_s or not span.elapsed_s:
            return None
        return span.moved_bytes / (span.elapsed_s * self.link_bytes_per_s)

    def host_peak(self, span: Span) -> int:
        """Most host memory that was seen in a span, or around one between two samples."""
        inside = [s for s in self.samples if span.begin_s <= s.at_s <= span.end_s]
        around = [min(self.samples, key=lambda s: abs(s.at_s - span.begin_s), default=None)]
        return max((s.host_bytes for s in inside or around if s is not None), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)

    def _peak(self, parts: list[Span]) -> int:
        """Most that was held in a stage: as sampled, or exactly where the video's peak rose in it.

        The allocator's own peak only ever rises, so a stage lower than one before is sampled.
        """
        begin, end = parts[0].begin_s, parts[-1].end_s
        sampled = [s.reserved_bytes for s in self.samples if begin <= s.at_s <= end]
        before = [
            span.peak_reserved_bytes
            for span in self.spans
            if span.video == parts[0].video and span.end_s <= begin
        ]
        peak = max(part.peak_reserved_bytes for part in parts)
        return peak if peak > max(before, default=0) else max(sampled, default=0)
