"""The picture of a run over time: memory of the device and the host, the link, and stalls."""

from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

from fastvideo_lightning.report.timeline import STAGES, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 1 << 30
# Of the colour-blind safe palette of Okabe and Ito, https://jfly.uni-koeln.de/color/.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
_SHADES = {"encode": "#F0E442", "denoise": "#56B4E9", "decode": "#CC79A7"}


def draw_png(timeline: Timeline) -> bytes:
    """Return the picture as PNG."""
    content = BytesIO()
    _draw(timeline).savefig(content, format="png", dpi=130)
    return content.getvalue()


def draw_svg(timeline: Timeline) -> str:
    """Return the picture as SVG, to stand in a page."""
    content = StringIO()
    _draw(timeline).savefig(content, format="svg")
    return content.getvalue()[content.getvalue().index("<svg") :]


def _draw(timeline: Timeline) -> "Figure":
    from matplotlib.figure import Figure

    panels: list[Any] = [_draw_device] if timeline.has_gpu else []
    panels.append(_draw_host)
    if any(span.moved_bytes for span in timeline.spans):
        panels += [_draw_link, _draw_stalls]
    figure = Figure(figsize=(10, 1.2 + 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        panel(timeline, axis)
        _shade_stages(timeline, axis)
        axis.set_axisbelow(True)
        axis.grid(alpha=0.3)
        axis.margins(x=0)
        axis.set_ylim(bottom=0)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10, frameon=False)
    axes[-1].set_xlabel("time since the run began, s")
    count = len(timeline.prompts)
    figure.suptitle(f"{count} video{'' if count == 1 else 's'}, {timeline.device}", fontsize=12)
    return figure


def _draw_device(timeline: Timeline, axis: "Axes") -> None:
    at = [sample.at_s for sample in timeline.samples]
    reserved = [sample.reserved_bytes / GIB for sample in timeline.samples]
    allocated = [sample.allocated_bytes / GIB for sample in timeline.samples]
    axis.plot(at, reserved, color=_BLUE, label="reserved")
    axis.fill_between(at, allocated, color=_BLUE, alpha=0.25, label="in use")
    if timeline.plan is not None:
        for i, (begin, end, planned) in enumerate(_planned(timeline)):
            label = "plan" if i == 0 else "_nolegend_"
            axis.hlines(planned / GIB, begin, end, color=_RED, linestyle="--", label=label)
        budget = timeline.plan["budget_bytes"]
        if budget:
            axis.axhline(budget / GIB, color=_GREY, linestyle=":", label="budget")
    axis.set_ylabel("GPU memory, GiB")


def _draw_host(timeline: Timeline, axis: "Axes") -> None:
    at = [sample.at_s for sample in timeline.samples]
    host = [sample.host_bytes / GIB for sample in timeline.samples]
    axis.plot(at, host, color=_GREEN, label="resident in\nhost memory")
    axis.set_ylabel("host memory, GiB")


def _draw_link(timeline: Timeline, axis: "Axes") -> None:
    spans = [span for span in timeline.spans if span.elapsed_s > 0]
    edges = [(span.begin_s, span.end_s) for span in spans]
    rates = [span.moved_bytes / span.elapsed_s / 1e9 for span in spans]
    axis.hlines(rates, *zip(*edges, strict=True), color=_ORANGE, linewidth=2, label="copied")
    if timeline.link_bytes_per_s:
        limit = timeline.link_bytes_per_s / 1e9
        axis.axhline(limit, color=_GREY, linestyle=":", label="what the link\ncan do")
    axis.set_ylabel("copies to the GPU, GB/s")


def _draw_stalls(timeline: Timeline, axis: "Axes") -> None:
    spans = [span for span in timeline.spans if span.elapsed_s > 0]
    axis.bar(
        [span.begin_s for span in spans],
        [100 * span.stall_s / span.elapsed_s for span in spans],
        [span.elapsed_s for span in spans],
        align="edge",
        color=_RED,
        label="computing waited\nfor a copy",
    )
    axis.set_ylabel("stalled, % of the time")
    axis.set_ylim(top=max(10.0, axis.get_ylim()[1]))


def _shade_stages(timeline: Timeline, axis: "Axes") -> None:
    named = set()
    for video in range(len(timeline.prompts)):
        for span in timeline.stages(video):
            label = "_nolegend_" if span.stage in named else span.stage
            named.add(span.stage)
            colour = _SHADES[span.stage]
            shade = axis.axvspan(span.begin_s, span.end_s, color=colour, alpha=0.25, lw=0)
            shade.set(label=label, zorder=0)


def _planned(timeline: Timeline) -> list[tuple[float, float, int]]:
    """Begin, end and planned memory of each stage of each video."""
    assert timeline.plan is not None
    planned = {stage["name"]: stage["reserved_bytes"] for stage in timeline.plan["stages"]}
    return [
        (span.begin_s, span.end_s, planned[span.stage])
        for video in range(len(timeline.prompts))
        for span in timeline.stages(video)
        if span.stage in STAGES
    ]
