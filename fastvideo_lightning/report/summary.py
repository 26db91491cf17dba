"""A run in five lines."""

from fastvideo_lightning.report.timeline import Timeline

GIB = 1 << 30


def summary_lines(timeline: Timeline) -> list[str]:
    """Return five lines: time, device memory, host memory, copies, and stalls against the plan."""
    videos = len(timeline.prompts)
    stages: dict[str, float] = {}
    moved = stall = misses = peak = 0.0
    for video in range(videos):
        for span in timeline.stages(video):
            stages[span.stage] = stages.get(span.stage, 0.0) + span.elapsed_s
            moved, stall = moved + span.moved_bytes, stall + span.stall_s
            misses, peak = misses + span.misses, max(peak, span.peak_reserved_bytes)
    spent = ", ".join(f"{stage} {time:.2f} s" for stage, time in stages.items())
    allocated = max((sample.allocated_bytes for sample in timeline.samples), default=0)
    host = max((sample.host_bytes for sample in timeline.samples), default=0)
    memory = "GPU memory: none, everything ran on the CPU"
    if timeline.has_gpu:
        memory = f"GPU memory: {peak / GIB:.2f} GiB reserved, {allocated / GIB:.2f} GiB in use"
    planned = timeline.plan
    if planned is not None:
        memory += f"; the plan said {planned['reserved_gib']:.2f} GiB"
    return [
        f"{videos} video{'' if videos == 1 else 's'} in {timeline.elapsed_s:.2f} s: {spent}",
        memory,
        f"Host memory: {host / GIB:.2f} GiB resident at most",
        f"Copied to the GPU: {moved / GIB:.2f} GiB{_share(timeline, moved, stages)}",
        f"Stalls: {stall:.2f} s of waiting for copies, {misses:.0f} blocks not fetched in time",
    ]


def _share(timeline: Timeline, moved: float, stages: dict[str, float]) -> str:
    elapsed = sum(stages.values())
    if not moved or not elapsed:
        return ""
    rate = f", {moved / elapsed / 1e9:.1f} GB/s on average"
    if timeline.link_bytes_per_s:
        rate += f", {moved / elapsed / timeline.link_bytes_per_s:.0%} of the link"
    return rate
