"""The tables of a report: what a run has, column by column; what it cannot have is left out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastvideo_lightning.report.summary import GIB
from fastvideo_lightning.report.timeline import Span, Timeline

Column = tuple[str, Callable[[Span], object]]


class Table(NamedTuple):
    """Column names, and rows of as many cells."""

    columns: list[str]
    rows: list[list[object]]


def make_stage_table(timeline: Timeline, video: int) -> Table:
    """A row for each stage of a video; measured and planned stand side by side."""
    columns: list[Column] = [
        ("stage", lambda span: span.stage),
        ("time, s", lambda span: f"{span.elapsed_s:.3f}"),
    ]
    planned = _planned(timeline)
    has_times = any(stage["time_s"] is not None for stage in planned.values())
    if has_times:
        columns.append(("plan, s", lambda span: f"{planned[span.stage]['time_s']:.3f}"))
    if timeline.has_gpu:
        columns.append(("reserved, GiB", lambda span: _gib(span.peak_reserved_bytes)))
    if planned:
        columns.append(("plan, GiB", lambda span: _gib(planned[span.stage]["reserved_bytes"])))
    columns += [
        *_copies(timeline),
        ("host memory, GiB", lambda span: _gib(timeline.host_peak(span))),
    ]
    return _fill(columns, timeline.stages(video))


def make_step_table(timeline: Timeline, video: int, most: int) -> Table:
    """A row for each denoising step of a video, `most` at most."""
    columns: list[Column] = [
        ("step", lambda span: span.step),
        ("time, s", lambda span: f"{span.elapsed_s:.3f}"),
        *_copies(timeline),
    ]
    return _fill(columns, timeline.steps(video)[:most])


def _fill(columns: list[Column], spans: list[Span]) -> Table:
    rows = [[cell(span) for _, cell in columns] for span in spans]
    return Table([name for name, _ in columns], rows)


def _copies(timeline: Timeline) -> list[Column]:
    if not timeline.has_copies:
        return []
    link: list[Column] = []
    if timeline.link_bytes_per_s:
        link.append(("of the link", lambda span: f"{timeline.link_utilisation(span) or 0:.0%}"))
    return [
        ("copied, GiB", lambda span: f"{span.moved_bytes / GIB:.3f}"),
        *link,
        ("stalled, s", lambda span: f"{span.stall_s:.3f}"),
        ("misses", lambda span: span.misses),
    ]


def _planned(timeline: Timeline) -> Mapping[str, Mapping[str, Any]]:
    return {} if timeline.plan is None else {one["name"]: one for one in timeline.plan["stages"]}


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f}"
