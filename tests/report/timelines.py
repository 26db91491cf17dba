"""A timeline as a GPU would give it: made up, for there is none here."""

from fastvideo_lightning.report import Sample, Span, Timeline

GIB = 1 << 30
PLAN = {
    "budget_bytes": 12 * GIB,
    "reserved_gib": 9.5,
    "stages": [
        {"name": "encode", "reserved_bytes": 2 * GIB, "time_s": 2.2},
        {"name": "denoise", "reserved_bytes": int(9.5 * GIB), "time_s": 10.1},
        {"name": "decode", "reserved_bytes": 5 * GIB, "time_s": 2.0},
    ],
}


def make_timeline(*, prompts=("a raccoon",), plan=PLAN, num_steps=10):
    """Videos of 2 s encoding, 1 s a step, 2 s decoding."""
    timeline = Timeline("NVIDIA H100", link_bytes_per_s=55e9, plan=plan, prompts=list(prompts))
    at = 0.0
    for video in range(len(prompts)):
        timeline.spans.append(Span(video, "encode", None, at, at + 2, peak_reserved_bytes=GIB))
        at += 2
        for step in range(num_steps):
            moved, stall = 28 * 10**9, 0.05 + 0.3 * (step == 4)
            span = Span(video, "denoise", step, at, at + 1, moved, stall, step == 4, 9 * GIB)
            timeline.spans.append(span)
            at += 1
        timeline.spans.append(Span(video, "decode", None, at, at + 2, peak_reserved_bytes=9 * GIB))
        at += 2
    for i in range(round(at * 10)):
        place = i / 10 % (4 + num_steps)
        reserved = (
            GIB if place < 2 else 9 * GIB - i % 5 * 10**7 if place < 2 + num_steps else 4 * GIB
        )
        timeline.samples.append(Sample(i / 10, int(reserved), int(reserved * 0.7), 31 * GIB))
    return timeline
