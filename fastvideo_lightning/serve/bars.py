"""A plan as bars: what lies in GPU memory, in host memory and on the disk, as HTML."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jinja2 import Environment

from fastvideo_lightning.plan import Plan
from fastvideo_lightning.plan.machine import GIB
from fastvideo_lightning.plan.plan import Unit, closing_lines, headline, seconds

_NO_GPU = "This machine has no GPU: every part is computed on the CPU, from host memory."
_TEMPLATE = """
{%- macro draw(bar) %}
<div class="tier"><p><strong>{{ bar.name }}</strong> <span>{{ bar.said }}</span></p>
<div class="stack" role="img" aria-label="{{ bar.name }}: {{ bar.said }}">
{% for part in bar.parts %}<span class="colour-{{ part.colour }}"
 style="width:{{ '%.3f' % (100 * part.size_bytes / bar.whole_bytes) }}%"></span>{% endfor %}</div>
<ul class="legend">{% for part in bar.parts %}<li><i class="colour-{{ part.colour }}"></i>
{{ part.name }} <b>{{ unit.show(part.size_bytes) }} {{ unit.name }}</b></li>{% endfor %}</ul></div>
{%- endmacro %}
{%- macro table(columns, rows) %}
<div class="wide"><table><tr>{% for name in columns %}<th scope="col">{{ name }}</th>
{% endfor %}</tr>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</table></div>
{%- endmacro %}
{%- if here %}<section class="here"><h3>Here, on the CPU</h3><p>{{ no_gpu }}</p>
{{ draw(here) }}</section><h3>On a GPU it would be</h3>{% endif %}
<p class="headline">{{ headline }}</p>
<div class="tiers">{% for bar in bars %}{{ draw(bar) }}{% endfor %}</div>
<ul class="lines">{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
<details><summary>Every component and stage</summary>
{{ table(["component", "size, " ~ unit.name, "where"], components) }}
{{ table(["stage", "GPU, " ~ unit.name, "copied to it, " ~ unit.name, "time, s", "bound by"],
         stages) }}
</details>
<details><summary>As flags</summary><p><code>{{ flags }}</code></p></details>
"""


@dataclass(frozen=True)
class Part:
    """A piece of a bar.

    Attributes:
        name: What lies there.
        size_bytes: Its size.
        colour: Number of its colour; a component has the same in every bar.
    """

    name: str
    size_bytes: int
    colour: int


@dataclass
class Bar:
    """One kind of memory.

    Attributes:
        name: Which.
        said: How much of it is taken, in words.
        room_bytes: How much there is; where more is taken, the bar is as long as that.
        parts: What takes it.
    """

    name: str
    said: str
    room_bytes: int
    parts: list[Part] = field(default_factory=list)

    @property
    def whole_bytes(self) -> int:
        """What the bar's whole width stands for, 1 or more."""
        return max(self.room_bytes, sum(part.size_bytes for part in self.parts), 1)


def draw_bars(plan: Plan, on_cpu: Mapping[str, int] | None = None) -> str:
    """Return a plan as HTML; names and notes in it are no markup.

    Args:
        plan: What goes where.
        on_cpu: Bytes of each component's weights on a machine without a GPU, by name; None where
            there is one.
    """
    unit = Unit.of(plan)
    colours = {part.fqn: i for i, part in enumerate(plan.prediction.components)}
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    return template.render(
        here=None if on_cpu is None else _here(plan, unit, on_cpu, colours),
        no_gpu=_NO_GPU,
        headline=headline(plan),
        bars=[bar(plan, unit, colours) for bar in (_gpu, _host, _disk)],
        lines=closing_lines(plan, unit),
        unit=unit,
        components=[
            (
                part.fqn,
                unit.show(part.size_bytes),
                ": ".join(filter(None, (part.where, part.waits))),
            )
            for part in plan.prediction.components
        ],
        stages=[
            (
                stage.name,
                unit.show(stage.reserved_bytes),
                unit.show(stage.moved_bytes),
                seconds(stage.time_s),
                stage.bound,
            )
            for stage in plan.prediction.stages
        ],
        flags=plan.command_line,
    )


def _here(plan: Plan, unit: Unit, on_cpu: Mapping[str, int], colours: Mapping[str, int]) -> Bar:
    parts = [Part(fqn, size, colours.get(fqn, 0)) for fqn, size in on_cpu.items() if size]
    room = 0 if plan.host is None else plan.host.size_bytes
    return Bar("Host memory", _of(unit, sum(on_cpu.values()), room, "for weights"), room, parts)


def _gpu(plan: Plan, unit: Unit, colours: Mapping[str, int]) -> Bar:
    """Weights that stay, the slots, and what the stage that needs the most adds to them."""
    taken, found = plan.reserved_bytes, plan.prediction
    machine_bytes = plan.machine.memory_bytes if plan.machine else 0
    room = plan.budget_bytes if plan.budget_bytes is not None else machine_bytes
    said = _of(unit, taken, room, "reserved at most")
    parts = [Part(p.fqn, p.device_bytes, colours[p.fqn]) for p in found.components]
    slots = plan.config.num_slots * found.slot_bytes
    parts.append(Part("slots that blocks stream through", slots, len(colours)))
    most = max(found.stages, key=lambda stage: stage.reserved_bytes)
    rest = taken - sum(part.size_bytes for part in parts)
    parts.append(Part(f"work of the {most.name} stage", rest, len(colours) + 1))
    return Bar("GPU memory", said, room, [part for part in parts if part.size_bytes > 0])


def _host(plan: Plan, unit: Unit, colours: Mapping[str, int]) -> Bar:
    parts = [Part(p.fqn, p.host_bytes, colours[p.fqn]) for p in plan.prediction.components]
    room = 0 if plan.host is None else plan.host.size_bytes
    if plan.machine is not None and plan.machine.host_memory_bytes is not None:
        room = plan.machine.host_memory_bytes
    said = _of(unit, plan.host_bytes, room, "for weights")
    return Bar("Host memory", said, room, [part for part in parts if part.size_bytes])


def _disk(plan: Plan, unit: Unit, colours: Mapping[str, int]) -> Bar:
    places = plan.prediction.components
    parts = [
        Part(p.fqn, p.cached_bytes + p.disk_bytes, colours[p.fqn])
        for p in places
        if p.cached_bytes + p.disk_bytes
    ]
    room = sum(place.size_bytes for place in places)
    read = sum(part.size_bytes for part in parts)
    said = _of(unit, read, room, "read again for each call") if read else "nothing is read again"
    return Bar("Disk", said, room, parts)


def _of(unit: Unit, taken: int, room: int, what: str) -> str:
    if not room:
        return f"{unit.show(taken)} {unit.name} {what}"
    whole = unit if room < GIB else Unit("GiB", GIB, 2)
    return f"{unit.show(taken)} {unit.name} of {whole.show(room)} {whole.name} {what}"
