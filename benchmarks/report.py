"""From a benchmark's JSON to a Markdown table and a plot.

What a measured step says of other cards and links: computing scaled, bytes over the link.

Rows of a benchmark, in JSON and as Markdown tables, written as each of them comes.
"""

import json
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import click


class Card(NamedTuple):
    """A card by its makers' data sheet.

    Attributes:
        name: what it is called.
        tflops: dense bf16 with fp32 accumulation, 10**12 per second.
        link: what it is plugged into.
    """

    name: str
    tflops: float
    link: str


LINKS = {"PCIe 3 x16": 12.5e9, "PCIe 4 x16": 25e9, "PCIe 5 x16": 54e9}
"""Bytes per second that pinned copies to the device reach in practice."""

CARDS = (
    Card("RTX 3090", 71, "PCIe 4 x16"),
    Card("RTX 4090", 165, "PCIe 4 x16"),
    Card("RTX 5090", 210, "PCIe 5 x16"),
    Card("RTX A6000", 155, "PCIe 4 x16"),
    Card("L40S", 362, "PCIe 4 x16"),
    Card("A100", 312, "PCIe 4 x16"),
    Card("H100", 989, "PCIe 5 x16"),
)

_MEASURED = {"H100": 989.0, "H200": 989.0, "A100": 312.0}


class Prediction(NamedTuple):
    """A streamed step and the same with all weights resident, in milliseconds."""

    streamed_ms: float
    resident_ms: float

    @property
    def ratio(self) -> float:
        """How much longer the streamed step takes."""
        return self.streamed_ms / self.resident_ms


def predict(compute_ms: float, streamed_bytes: int, link_bytes_per_s: float) -> Prediction:
    """The bound: a step computes or copies, whichever is longer."""
    return Prediction(max(compute_ms, streamed_bytes / link_bytes_per_s * 1e3), compute_ms)


def make_predictions(facts: dict[str, Any]) -> str:
    """What the measured resident steps of a result predict for other links and cards."""
    computed = {row["frames"]: row["step_ms"] for row in facts["rows"] if row["mode"] == "resident"}
    if not computed:
        return ""
    frames = sorted(computed)
    lines = [
        "## What this predicts elsewhere",
        "",
        "A streamed step takes the longer of its computing and its bytes over the link. The same "
        "card on other links, then other cards on theirs: computing scaled from this card by the "
        "data sheets' dense bf16 rates, an estimate; the ratio is to a step with all weights on "
        "the card, whether or not they fit there.",
        "",
        "| card and link | " + " | ".join(f"{n} frames: ms (ratio)" for n in frames) + " |",
        "|---" * (len(frames) + 1) + "|",
    ]
    measured = next((rate for name, rate in _MEASURED.items() if name in facts["device"]), None)
    places = [(facts["device"], 1.0, link) for link in LINKS]
    if measured is not None:
        places += [(card.name, measured / card.tflops, card.link) for card in CARDS]
    for name, slower, link in places:
        cells = [f"{name}, {link} ({LINKS[link] / 1e9:.1f} GB/s)"]
        for count in frames:
            step = predict(computed[count] * slower, facts["block_bytes"], LINKS[link])
            cells.append(f"{step.streamed_ms:.0f} ({step.ratio:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def link_ms(facts: dict[str, Any], row: dict[str, Any]) -> float:
    """How long the streamed bytes of a row are on the link."""
    rate = row.get("link_bytes_per_s") or facts["link_bytes_per_s"]
    return float(row["streamed_bytes"] / rate * 1e3)


def bound_ms(facts: dict[str, Any], row: dict[str, Any]) -> float:
    """The limit of a step: that of the mode beside, or the streamed bytes on the link."""
    return max(link_ms(facts, row), row["beside_ms"] or 0.0)


def make_table(facts: dict[str, Any]) -> str:
    """The rows of a result as a Markdown table with its circumstances above."""
    is_repeated = any(row.get("link_bytes_per_s") for row in facts["rows"])
    again = ", whose rate is measured again in each round" if is_repeated else ""
    lines = [
        f"# {facts['model']}, one denoising step, {facts['size']}, bf16, batch 1",
        "",
        f"{facts['device']}, torch {facts['torch']}, diffusers {facts['diffusers']}, "
        f"Python {facts['python']}, commit {facts['commit']}. "
        f"Weights {facts['weight_bytes'] / 1e9:.2f} GB, of them blocks "
        f"{facts['block_bytes'] / 1e9:.2f} GB; pinned host-to-device rate "
        f"{facts['link_bytes_per_s'] / 1e9:.1f} GB/s. Median of up to {facts['rounds']} rounds "
        "in turns (least to most). The bound of a mode is the larger of the resident step and its "
        f"streamed bytes over the link{again}. Reserved and "
        "allocated: what the mode adds to the process. "
        "Host: bytes that it holds there over those of the weights that it keeps there. Equal: to "
        "the output of the resident model, compiled modes to that of the compiled one.",
        "",
        "| mode | frames | step ms (least to most) | rounds | streamed GB | step / resident "
        "| step / bound | reserved GB | allocated GB | host | set-up s | equal |",
        "|---" * 12 + "|",
    ]
    for row in sorted(facts["rows"], key=lambda row: row["frames"]):
        lines.append(f"| {' | '.join(_cells(facts, row))} |")
    return "\n".join(lines) + "\n"


def _cells(facts: dict[str, Any], row: dict[str, Any]) -> list[str]:
    beside, kept = row["beside_ms"], row["host_weight_bytes"]
    equal = {True: "yes", False: "no", None: "-"}
    return [
        row["mode"],
        str(row["frames"]),
        f"{row['step_ms']:.1f} ({row['min_ms']:.1f} to {row['max_ms']:.1f})",
        str(row["rounds"]),
        f"{row['streamed_bytes'] / 1e9:.2f}",
        f"{row['step_ms'] / beside:.3f}" if beside else "-",
        f"{row['step_ms'] / bound_ms(facts, row):.3f}" if bound_ms(facts, row) else "-",
        f"{row['reserved_gb']:.2f}",
        f"{row['allocated_gb']:.2f}",
        f"{row['host_bytes'] / kept:.2f}" if kept else "-",
        f"{row['setup_s']:.1f}",
        equal[row["equal_to_resident"]],
    ]


def check_drawing() -> None:
    """See that plots can be drawn, before minutes go into what they show.

    Raises:
        click.ClickException: naming what to install.
    """
    if find_spec("matplotlib") is None:
        raise click.ClickException('plots need matplotlib: pip install ".[report]"')


def draw(facts: dict[str, Any], path: Path) -> None:
    """Step time against reserved memory, a panel per frame count, the bound drawn in."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["frames"] for row in facts["rows"]})
    modes = list(dict.fromkeys(row["mode"] for row in facts["rows"]))
    columns = min(4, 2 * len(counts))
    legend_inches = 0.3 + 0.18 * ceil((len(modes) + 1) / columns)
    inches = (4.8 * len(counts), 3.9 + legend_inches)
    figure, axes = plt.subplots(1, len(counts), figsize=inches, squeeze=False, layout="constrained")
    for axis, frames in zip(axes[0], counts, strict=True):
        rows = [row for row in facts["rows"] if row["frames"] == frames]
        for row in rows:
            number = modes.index(row["mode"])
            axis.scatter(
                row["reserved_gb"],
                row["step_ms"],
                s=50,
                color=f"C{number % 10}",
                marker="os^D"[number // 10],
                label=row["mode"],
            )
        bound = max(bound_ms(facts, {**row, "streamed_bytes": 0}) for row in rows)
        whole = facts["block_bytes"]
        bound = max(bound, *(link_ms(facts, {**row, "streamed_bytes": whole}) for row in rows))
        axis.axhline(bound, color="gray", linestyle="--", label="bound of streaming all blocks")
        axis.set(
            title=f"{frames} frame{'s' if frames > 1 else ''}",
            xlabel="reserved GPU memory, GB",
            xlim=(0, 1.1 * max(row["reserved_gb"] for row in rows) or None),
            ylim=(0, 1.15 * max(bound, *(row["step_ms"] for row in rows))),
        )
    axes[0][0].set_ylabel("one denoising step, ms")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=columns)
    figure.suptitle(f"{facts['model']}, {facts['size']}, {facts['device']}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_report(path: Path) -> str:
    """Write the table and the plot beside a result's JSON; returns the table."""
    facts = json.loads(path.read_text())
    page = make_table(facts)
    if predictions := make_predictions(facts):
        page += f"\n{predictions}"
    path.with_suffix(".md").write_text(page)
    draw(facts, path.with_suffix(".png"))
    return page


Row = dict[str, Any]


class RowTable:
    """What a benchmark has measured so far.

    Args:
        path: of the JSON file; the page lies beside it.
        title: of the page.
        facts: of the machine and the run.
    """

    def __init__(self, path: Path, title: str, facts: dict[str, Any]) -> None:
        self.path = path
        self.title = title
        self.facts = facts
        self.parts: dict[str, list[Row]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, *rows: Row) -> None:
        """Keep rows of a part, all with the same columns, and write the files anew."""
        self.parts.setdefault(part, []).extend(rows)
        for row in rows:
            click.echo(f"{part}: {json.dumps(row)}")
        self.path.write_text(json.dumps({**self.facts, **self.parts}, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(self.page())

    def page(self) -> str:
        """The tables in Markdown."""
        lines = [f"# {self.title}", ""]
        told = {n: value for n, value in self.facts.items() if not isinstance(value, dict)}
        lines.append(", ".join(f"{name} {_text(value)}" for name, value in told.items()) + ".")
        for name, parts in self.facts.items():
            if name not in told and parts:
                lines += ["", f"{name}:", ""]
                lines += [f"- {part}: {_text(value)}" for part, value in parts.items() if value]
        for part, rows in self.parts.items():
            columns = list(rows[0])
            lines += ["", f"## {part}", "", f"| {' | '.join(columns)} |"]
            lines.append("|" + "---|" * len(columns))
            for row in rows:
                lines.append(f"| {' | '.join(_text(row[column]) for column in columns)} |")
        return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no"}.get(value, "-")  # type: ignore[arg-type]
    if isinstance(value, float):
        is_small = abs(value) < 1e-3  # 0 stands for every bit, and nothing else is written so
        return f"{value:.2g}" if is_small else f"{value:.3f}"
    return str(value)
