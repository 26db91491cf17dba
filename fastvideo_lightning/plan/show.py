"""A plan as people read it: tables of components and stages, and the flags they amount to."""

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fastvideo_lightning.plan.choose import round_up
from fastvideo_lightning.plan.machine import GIB
from fastvideo_lightning.plan.places import NUM_SLOTS

if TYPE_CHECKING:
    from fastvideo_lightning.plan.plan import Plan

_COLUMNS = 100


def draw_plan(plan: "Plan") -> Group:
    """Return what rich prints."""
    headline = Text(_headline(plan), style="bold")
    lines = [Text(line) for line in _closing_lines(plan)]
    return Group(headline, Text(), _components(plan), Text(), _stages(plan), Text(), *lines)


def plan_text(plan: "Plan") -> str:
    """Return the plan as plain text."""
    text = StringIO()
    Console(file=text, width=_COLUMNS, color_system=None).print(draw_plan(plan))
    return text.getvalue().rstrip()


def gigabytes(size_bytes: float) -> str:
    """A size in GiB with as many decimals as tell something."""
    gib = size_bytes / GIB
    return f"{gib:.2f}" if gib >= 0.1 or not gib else f"{gib:.4f}"


def seconds(time_s: float | None) -> str:
    """A time, or a dash where it is not known."""
    if time_s is None:
        return "-"
    return f"{time_s:.0f}" if time_s >= 100 else f"{time_s:.2f}"


def _headline(plan: "Plan") -> str:
    request = plan.subject.request
    video = f"{request.width}x{request.height}, {request.num_frames} frames"
    line = f"{plan.model}, {video}, {request.num_steps} steps"
    if plan.machine is not None:
        line += f", on {plan.machine.name} ({plan.machine.source})"
    return line


def _components(plan: "Plan") -> Table:
    table = _table("component", "GiB", "where", "on the GPU, GiB", "in host memory, GiB")
    for part in plan.prediction.components:
        table.add_row(
            part.fqn,
            gigabytes(part.size_bytes),
            part.where,
            gigabytes(part.device_bytes),
            gigabytes(part.host_bytes),
        )
    slots = NUM_SLOTS * plan.prediction.slot_bytes
    if slots:
        table.add_row("", "", f"{NUM_SLOTS} slots that blocks stream through", gigabytes(slots), "")
    return table


def _stages(plan: "Plan") -> Table:
    if plan.machine is None:
        table = _table("stage", "reserved on the GPU, GiB", "copied to it, GiB")
        for stage in plan.prediction.stages:
            moved = gigabytes(stage.moved_bytes)
            table.add_row(stage.name, gigabytes(stage.reserved_bytes), moved)
        return table
    columns = ("time, s", "bound by", "computing, s", "link, s")
    table = _table("stage", "reserved on the GPU, GiB", "copied to it, GiB", *columns)
    for stage in plan.prediction.stages:
        table.add_row(
            stage.name,
            gigabytes(stage.reserved_bytes),
            gigabytes(stage.moved_bytes),
            seconds(stage.time_s),
            stage.bound,
            seconds(stage.compute_s),
            seconds(stage.link_s),
        )
    return table


def _closing_lines(plan: "Plan") -> list[str]:
    memory = f"GPU memory reserved at most: {gigabytes(plan.reserved_bytes)} GiB"
    if plan.budget_bytes is not None:
        memory += f" of a budget of {gigabytes(plan.budget_bytes)}"
    lines = [
        f"{memory}. Smallest possible budget: {round_up(plan.smallest_bytes)} GiB.",
        f"Host memory for weights: {gigabytes(plan.host_bytes)} GiB.",
    ]
    if plan.time_s is not None:
        lines.append(
            f"Time: {seconds(plan.time_s)} s a video, {seconds(plan.step_s)} s a denoising step."
        )
    else:
        lines.append("No times: there is no GPU here that is known. Name a card with --gpu.")
    if plan.config.vae_tiling:
        lines.append("The VAE decodes in tiles, which changes pixels slightly.")
    return [*lines, f"Flags: {plan.command_line}"]


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for i, name in enumerate(columns):
        is_text = i == 0 or name in ("where", "bound by")
        table.add_column(name, justify="left" if is_text else "right")
    return table
