"""The page of a run: one HTML file that needs nothing from anywhere."""

from jinja2 import Environment
from markupsafe import Markup

from fastvideo_lightning.report.draw import draw_svg
from fastvideo_lightning.report.summary import summary_lines
from fastvideo_lightning.report.tables import make_stage_table, make_step_table
from fastvideo_lightning.report.timeline import Timeline

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
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
svg { width: 100%; min-width: 44rem; height: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #888; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
.error { color: #a00; }
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
