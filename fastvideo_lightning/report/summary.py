"""A run in five lines."""

from fastvideo_lightning.report.timeline import Timeline

GIB = 1 << 30


def summary_lines(timeline: Timeline) -> list[str]:
    """Return five lines: time, device memory, host memory, copies, and stalls against the plan.

    Without copies there are no stalls either: the lines then say what a step takes and where host
    memory began.
    """
    videos = len(timeline.prompts)
    stages: dict[str, float] = {}
    for video in range(videos):
        for span in timeline.stages(video):
            stages[span.stage] = stages.get(span.stage, 0.0) + span.elapsed_s
    spent = ", ".join(f"{stage} {time:.2f} s" for stage, time in stages.items())
    first = f"{videos} video{'' if videos == 1 else 's'} in {timeline.elapsed_s:.2f} s"
    copies = timeline.has_copies
    rest = _with_copies(timeline, sum(stages.values())) if copies else _without_copies(timeline)
    return [f"{first}: {spent}" if spent else first, *rest]


def _with_copies(timeline: Timeline, elapsed_s: float) -> list[str]:
    spans = [span for video in range(len(timeline.prompts)) for span in timeline.stages(video)]
    moved, stall = sum(s.moved_bytes for s in spans), sum(s.stall_s for s in spans)
    peak = max((span.peak_reserved_bytes for span in spans), default=0)
    misses = sum(span.misses for span in spans)
    allocated = max((sample.allocated_bytes for sample in timeline.samples), default=0)
    memory = "GPU memory: none, everything ran on the CPU"
    if timeline.has_gpu:
        memory = f"GPU memory: {peak / GIB:.2f} GiB reserved, {allocated / GIB:.2f} GiB in use"
    if timeline.plan is not None:
        memory += f"; the plan said {timeline.plan['reserved_gib']:.2f} GiB"
    late = f"{misses} block{'' if misses == 1 else 's'} not fetched in time"
    return [
        memory,
        f"Host memory: {_host(timeline) / GIB:.2f} GiB resident at most",
        f"Copied to the GPU: {moved / GIB:.2f} GiB{_share(timeline, moved, elapsed_s)}",
        f"Stalls: {stall:.2f} s of waiting for copies, {late}",
    ]


def _without_copies(timeline: Timeline) -> list[str]:
    steps = [span for video in range(len(timeline.prompts)) for span in timeline.steps(video)]
    pace = "Denoising: no step was made"
    if steps:
        step_s = sum(span.elapsed_s for span in steps) / len(steps)
        pace = f"Denoising: {len(steps)} step{'' if len(steps) == 1 else 's'} of {step_s:.3f} s"
    begin = timeline.samples[0].host_bytes if timeline.samples else 0
    return [
        pace,
        f"Host memory: {_host(timeline) / GIB:.2f} GiB resident at most",
        f"Host memory at the start: {begin / GIB:.2f} GiB",
        "GPU: none, everything ran on the CPU, so nothing was copied",
    ]


def _host(timeline: Timeline) -> int:
    return max((sample.host_bytes for sample in timeline.samples), default=0)


def _share(timeline: Timeline, moved: int, elapsed_s: float) -> str:
    if not moved or not elapsed_s:
        return ""
    rate = f", {moved / elapsed_s / 1e9:.1f} GB/s on average"
    if timeline.link_bytes_per_s:
        rate += f", {moved / elapsed_s / timeline.link_bytes_per_s:.0%} of the link"
    return rate
