"""From a benchmark's JSON to a Markdown table and a plot."""

import json
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import click

from benchmarks.cards import make_predictions


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
