"""The page of a run, one HTML file that needs nothing from anywhere, and its tables.

What a run cannot have is left out, column by column.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from fastvideo_lightning.report.draw import draw_svg
from fastvideo_lightning.report.summary import GIB, summary_lines
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


# More rows than this, and nobody reads them: the JSON report has all.
_MAX_VIDEOS, _MAX_STEPS = 50, 100

_TEMPLATE = """{% macro table(one) %}
<div class="wide"><table>
<tr>{% for name in one.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in one.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Report: {{ title }}</title>
<meta name="color-scheme" content="light dark">
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
svg { width: 100%; min-width: 44rem; height: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #8888; text-align: right; }
th { border-bottom: 2px solid #888; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
.error { color: #a00; }
@media (prefers-color-scheme: dark) {
  body { background: #16181d; color: #e6e8eb; }
  .error { color: #ff8a80; }
  /* The picture's lightness turns round, its hues stay. */
  svg { filter: invert(0.9) hue-rotate(180deg); }
}
h2 { overflow-wrap: anywhere; }
summary { cursor: pointer; }
</style>
</head>
<body>
<h1>What the run did</h1>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% if error %}<p class="error">The run ended early: {{ error }}</p>{% endif %}
<div class="wide">{{ picture }}</div>
{% for video in videos %}
<h2>{{ video.prompt }}</h2>
{{ table(video.stages) }}
{% if video.steps.rows %}
<details><summary>Denoising steps</summary>{{ table(video.steps) }}</details>
{% endif %}
{% endfor %}
{% if left_out %}<p>{{ left_out }} more videos are in the JSON report.</p>{% endif %}
</body>
</html>
"""


def make_page(timeline: Timeline) -> str:
    """Return the page; what people typed is escaped."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    shown = range(min(len(timeline.prompts), _MAX_VIDEOS))
    return template.render(
        title=timeline.prompts[0] if timeline.prompts else timeline.device,
        lines=summary_lines(timeline),
        error=timeline.error,
        picture=Markup(draw_svg(timeline)),  # matplotlib's own, and it escapes
        videos=[
            {
                "prompt": timeline.prompts[video],
                "stages": make_stage_table(timeline, video),
                "steps": make_step_table(timeline, video, _MAX_STEPS),
            }
            for video in shown
        ],
        left_out=len(timeline.prompts) - len(shown),
    )
