"""Plan: what goes where for one model, one size of video and one budget, and how it is shown."""

from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan.choose import CHOSEN, round_up
from fastvideo_lightning.plan.host_memory import FreeMemory
from fastvideo_lightning.plan.machine import GIB, Machine
from fastvideo_lightning.plan.notes import make_notes, notes_on_gpus
from fastvideo_lightning.plan.predict import Prediction, predict
from fastvideo_lightning.plan.workload import Workload

_OF_THE_BUDGET = {"gpu_memory_budget", "on_oom"}


@dataclass(frozen=True)
class Plan:
    """What goes where, and what that takes.

    `print(plan)` shows it as a table; `to_dict` is for programs.

    Attributes:
        model: The model's name.
        subject: What was measured of the model and the video.
        prediction: Components, stages and flags.
        machine: The hardware; None where memory alone is known.
        budget_bytes: Device memory that may be reserved; None where no budget was given.
        smallest_bytes: The smallest budget that is possible under the user's flags.
        num_gpus: GPUs that share the prompts; the plan is for each of them.
        dtype: What the model is loaded with, where that was asked for.
        host: The host memory that there is, and whose it is in words.
        origin: What was planned, and where its shapes are from, where that has to be said.
    """

    model: str
    subject: Workload
    prediction: Prediction
    machine: Machine | None
    budget_bytes: int | None
    smallest_bytes: int
    num_gpus: int = 1
    dtype: str = "auto"
    host: FreeMemory | None = None
    origin: str = ""

    @property
    def config(self) -> OffloadConfig:
        """The flags, as `VideoGenerator` takes them."""
        return self.prediction.config

    @property
    def flags(self) -> dict[str, Any]:
        """The flags that the plan decides and that have an effect on the model, by name."""
        without_effect = set()
        if not self.config.dit_layerwise_offload:
            without_effect.add("dit_resident_blocks")
            if not self.config.text_encoder_layerwise_offload:
                without_effect.add("num_slots")
        if not self.subject.by_role(Role.IMAGE_ENCODER):
            without_effect.add("image_encoder_cpu_offload")
        return {n: getattr(self.config, n) for n in CHOSEN if n not in without_effect}

    @property
    def command_line(self) -> str:
        """The flags as one types them, and what else was asked for that the plan counts on."""
        words = [f"--num-gpus {self.num_gpus}"] if self.num_gpus > 1 else []
        words += [f"--dtype {self.dtype}"] if self.dtype != "auto" else []
        for name, value in {**self.flags, **self._asked}.items():
            stem = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{stem}" if value else f"--no-{stem}")
            elif value != getattr(OffloadConfig, name):
                words.append(f"--{stem} {value}")
        return " ".join(words)

    @property
    def _asked(self) -> dict[str, Any]:
        """The flags that the plan does not decide, where they are none of the defaults."""
        default, others = OffloadConfig(), OffloadConfig.__dataclass_fields__.keys() - {*CHOSEN}
        asked = {n: getattr(self.config, n) for n in sorted(others - _OF_THE_BUDGET)}
        return {n: value for n, value in asked.items() if value != getattr(default, n)}

    @property
    def reserved_bytes(self) -> int:
        """Device memory that is reserved at most."""
        return self.prediction.reserved_bytes

    @property
    def host_bytes(self) -> int:
        """Host memory of the weights, those of mapped files included."""
        return sum(part.host_bytes for part in self.prediction.components)

    @property
    def time_s(self) -> float | None:
        """Of one video without loading and writing; None where no machine is known."""
        return None if self.machine is None else self.prediction.time_s

    @property
    def step_s(self) -> float | None:
        """Of one denoising step; None where no machine is known."""
        time = self.prediction.stages[1].time_s
        return None if time is None else time / self.subject.request.num_steps

    @property
    def notes(self) -> list[str]:
        """What the plan changes of the pixels, and what it leaves out, in sentences."""
        notes = make_notes(self.subject, self.prediction, self.machine)
        notes += notes_on_gpus(self.num_gpus, self.prediction, self.machine)
        return [self.origin, *notes] if self.origin else notes

    @property
    def host_line(self) -> str:
        """What waits where on the host, why, and the seconds of it; empty where nothing moves."""
        denoisers = {size.fqn for size in self.subject.by_role(Role.DENOISER)}
        stage, parts = self.prediction.stages[1], []
        moving = [part for part in self.prediction.components if part.streamed_bytes]
        for part in sorted(moving, key=lambda part: part.fqn not in denoisers):
            text = f"of {part.fqn} {part.waits or 'all that moves held in memory'}"
            if part.fqn in denoisers and self.step_s and part.copy_s and stage.compute_s:
                is_once = self.config.pair_guidance is True or self.config.guidance_parallel > 1
                copy_s = part.copy_s * (1 if is_once else self.subject.request.num_calls)
                is_hidden = (stage.time_s or 0.0) <= 1.02 * stage.compute_s
                fate = "hidden" if is_hidden else "which the step waits for"
                text += f": {copy_s:.2g} s of a {self.step_s:.3g} s step, {fate}"
            elif part.copy_s:
                text += f": {part.copy_s:.2g} s a call"
            parts.append(text)
        if not parts:
            return ""
        budget, machine = self.config.host_memory_budget, self.machine
        why = ""
        if not isinstance(budget, str | None):
            why = f", with host_memory_budget={budget:g}"
        elif machine is not None and machine.host_memory_bytes is not None:
            why = f", with {machine.host_memory_bytes / GIB:.3g} GiB of memory"
        return f"On the host{why}: {'; '.join(parts)}."

    def under(self, config: OffloadConfig) -> Prediction:
        """Predict the same video under other flags."""
        return predict(self.subject, config, self.machine)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, sizes in bytes and times in seconds."""
        return {
            "model": self.model,
            "machine": None if self.machine is None else asdict(self.machine),
            "budget_bytes": self.budget_bytes,
            "smallest_budget_gib": round_up(self.smallest_bytes),
            "num_gpus": self.num_gpus,
            "request": asdict(self.subject.request),
            "components": [asdict(part) for part in self.prediction.components],
            "stages": [asdict(stage) for stage in self.prediction.stages],
            "slot_bytes": self.prediction.slot_bytes,
            "reserved_bytes": self.reserved_bytes,
            "reserved_gib": self.reserved_bytes / GIB,
            "host_bytes": self.host_bytes,
            "host_line": self.host_line,
            "host_memory_bytes": None if self.host is None else self.host.size_bytes,
            "time_s": self.time_s,
            "step_s": self.step_s,
            "notes": self.notes,
            "flags": self.flags,
            "command_line": self.command_line,
        }

    def __rich__(self) -> "Group":

        return draw_plan(self)

    def __str__(self) -> str:

        return plan_text(self)


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
    title = Text(headline(plan), style="bold")
    unit = Unit.of(plan)
    lines = [Text(line) for line in closing_lines(plan, unit)]
    # In one piece, for it is copied: a line that ends where the terminal does is another command.
    flags = Text(f"Flags: {plan.command_line}", no_wrap=True, overflow="ignore")
    tables = (_components(plan, unit), Text(), _stages(plan, unit))
    return Group(title, Text(), *tables, Text(), *lines, flags)


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


def headline(plan: "Plan") -> str:
    """Return the model, the video and the machine in one line."""
    request = plan.subject.request
    line = f"{plan.model}, {request}, {request.num_steps} steps"
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
        where = f"{part.where}: {part.waits}" if part.waits else part.where
        table.add_row(part.fqn, whole, where, device, host)
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


def closing_lines(plan: "Plan", unit: Unit) -> list[str]:
    """Return what stands below the tables: memory in all, time, and the notes, in sentences."""
    memory = f"GPU memory reserved at most: {unit.show(plan.reserved_bytes)} {unit.name}"
    if plan.budget_bytes is not None:
        memory += f" of a budget of {plan.budget_bytes / GIB:.2f} GiB"
    lines = [
        f"{memory}. Smallest possible budget: {round_up(plan.smallest_bytes):g} GiB.",
        _host_memory(plan, unit),
        *filter(None, [plan.host_line]),
    ]
    if plan.time_s is not None:
        lines.append(
            f"Time: {_long(plan.time_s)} a video, {seconds(plan.step_s)} s a denoising step."
        )
    else:
        lines.append("No times: there is no GPU here that is known.")
    return [*lines, *plan.notes]


def _host_memory(plan: "Plan", unit: Unit) -> str:
    """What weights take of the host, beside what it has."""
    line = f"Host memory for weights: {unit.show(plan.host_bytes)} {unit.name}"
    if plan.host is None:
        return f"{line}."
    has = f"{plan.host.limit} has {plan.host.size_bytes / GIB:.2f} GiB"
    is_planned = plan.machine is not None and plan.machine.host_memory_bytes is not None
    if is_planned or plan.host_bytes <= plan.host.size_bytes:
        return f"{line}; {has}."
    gib = int(plan.host.size_bytes / GIB * 10) / 10
    return (
        f"{line}, and {has}, which is less: with --host-memory {gib:g} the plan is for that much, "
        "and the rest is read from the files. --dtype fp8 halves a denoiser."
    )


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for i, name in enumerate(columns):
        is_text = i == 0 or name in ("where", "bound by")
        table.add_column(name, justify="left" if is_text else "right")
    return table
