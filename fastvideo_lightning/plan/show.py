"""A plan as people read it: tables of components and stages, and the flags they amount to."""

from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fastvideo_lightning.plan.choose import round_up
from fastvideo_lightning.plan.machine import GIB

if TYPE_CHECKING:
    from fastvideo_lightning.plan.plan import Plan

_COLUMNS = 100


@dataclass(frozen=True)
class Unit:
    """What all sizes of a plan are shown in."""

    name: str
    size_bytes: int
    decimals: int

    @classmethod
    def of(cls, plan: "Plan") -> "Unit":
        """GiB, or MiB for a plan in which nothing reaches one."""
        parts = (part.size_bytes for part in plan.prediction.components)
        is_small = max(plan.reserved_bytes, *parts) < GIB
        return cls("MiB", 1 << 20, 1) if is_small else cls("GiB", GIB, 2)

    def show(self, size_bytes: float) -> str:
        """A size without its unit; 0 for nothing at all."""
        return f"{size_bytes / self.size_bytes:.{self.decimals}f}" if size_bytes else "0"


def draw_plan(plan: "Plan") -> Group:
    """Return what rich prints."""
    headline = Text(_headline(plan), style="bold")
    unit = Unit.of(plan)
    lines = [Text(line) for line in _closing_lines(plan, unit)]
    # In one piece, for it is copied: a line that ends where the terminal does is another command.
    flags = Text(f"Flags: {plan.command_line}", no_wrap=True, overflow="ignore")
    tables = (_components(plan, unit), Text(), _stages(plan, unit))
    return Group(headline, Text(), *tables, Text(), *lines, flags)


def plan_text(plan: "Plan") -> str:
    """Return the plan as plain text."""
    text = StringIO()
    Console(file=text, width=_COLUMNS, color_system=None).print(draw_plan(plan), crop=False)
    return text.getvalue().rstrip()


def seconds(time_s: float | None) -> str:
    """A time, or a dash where it is not known."""
    if time_s is None:
        return "-"
    return f"{time_s:.0f}" if time_s >= 100 else f"{time_s:.2f}"


def _long(time_s: float) -> str:
    """A time with its unit, and from two minutes on as one says it."""
    if time_s < 120:
        return f"{seconds(time_s)} s"
    hours, minutes = divmod(round(time_s / 60), 60)
    return f"{seconds(time_s)} s ({f'{hours} h ' if hours else ''}{minutes} min)"


def _headline(plan: "Plan") -> str:
    request = plan.subject.request
    video = f"{request.width}x{request.height}, {request.num_frames} frames"
    line = f"{plan.model}, {video}, {request.num_steps} steps"
    if plan.machine is not None:
        line += f", on {plan.machine.name} ({plan.machine.source})"
    return line


def _components(plan: "Plan", unit: Unit) -> Table:
    in_unit = unit.name
    table = _table(
        "component", in_unit, "where", f"on the GPU, {in_unit}", f"in host memory, {in_unit}"
    )
    for part in plan.prediction.components:
        sizes = (part.size_bytes, part.device_bytes, part.host_bytes)
        whole, device, host = map(unit.show, sizes)
        table.add_row(part.fqn, whole, part.where, device, host)
    count = plan.config.num_slots
    slots = count * plan.prediction.slot_bytes
    if slots:
        name = "1 slot" if count == 1 else f"{count} slots"
        table.add_row("", "", f"{name} that blocks stream through", unit.show(slots), "")
    return table


def _stages(plan: "Plan", unit: Unit) -> Table:
    columns = ["stage", f"reserved on the GPU, {unit.name}", f"copied to it, {unit.name}"]
    if plan.machine is not None:
        columns += ["time, s", "bound by", "computing, s", "link, s"]
    table = _table(*columns)
    for stage in plan.prediction.stages:
        times = (
            seconds(stage.time_s),
            stage.bound,
            seconds(stage.compute_s),
            seconds(stage.link_s),
        )
        table.add_row(
            stage.name,
            unit.show(stage.reserved_bytes),
            unit.show(stage.moved_bytes),
            *(times if plan.machine is not None else ()),
        )
    return table


def _closing_lines(plan: "Plan", unit: Unit) -> list[str]:
    memory = f"GPU memory reserved at most: {unit.show(plan.reserved_bytes)} {unit.name}"
    if plan.budget_bytes is not None:
        memory += f" of a budget of {plan.budget_bytes / GIB:.2f} GiB"
    lines = [
        f"{memory}. Smallest possible budget: {round_up(plan.smallest_bytes):g} GiB.",
        f"Host memory for weights: {unit.show(plan.host_bytes)} {unit.name}.",
    ]
    if plan.time_s is not None:
        lines.append(
            f"Time: {_long(plan.time_s)} a video, {seconds(plan.step_s)} s a denoising step."
        )
    else:
        lines.append("No times: there is no GPU here that is known.")
    return [*lines, *plan.notes]


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for i, name in enumerate(columns):
        is_text = i == 0 or name in ("where", "bound by")
        table.add_column(name, justify="left" if is_text else "right")
    return table
