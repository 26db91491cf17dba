"""From a benchmark's JSON to a Markdown table and a plot."""

import json
from pathlib import Path


def bound_ms(facts: dict, row: dict) -> float:
    """The limit of a step: the resident one's time, or that of the streamed bytes on the link."""
    resident = [
        other["step_ms"]
        for other in facts["rows"]
        if other["mode"] == "resident" and other["frames"] == row["frames"]
    ]
    return max([row["streamed_bytes"] / facts["link_bytes_per_s"] * 1e3, *resident])


def make_table(facts: dict) -> str:
    """The rows of a result as a Markdown table with its circumstances above."""
    lines = [
        f"# {facts['model']}, one denoising step, 480x832, bf16, batch 1",
        "",
        f"{facts['device']}, torch {facts['torch']}, diffusers {facts['diffusers']}, "
        f"Python {facts['python']}, commit {facts['commit']}. "
        f"Weights {facts['weight_bytes'] / 1e9:.2f} GB, pinned host-to-device rate "
        f"{facts['link_bytes_per_s'] / 1e9:.1f} GB/s. Median of {facts['rounds']} interleaved "
        "rounds (least to most). The bound of a mode is the larger of the resident step and its "
        "streamed bytes over the link. Reserved and allocated: what the mode adds to the process.",
        "",
        "| mode | frames | step ms (least to most) | streamed GB | step / bound | reserved GB "
        "| allocated GB | set-up s | equal |",
        "|---" * 9 + "|",
    ]
    for row in sorted(facts["rows"], key=lambda row: row["frames"]):
        cells = (
            row["mode"],
            row["frames"],
            f"{row['step_ms']:.1f} ({row['min_ms']:.1f} to {row['max_ms']:.1f})",
            f"{row['streamed_bytes'] / 1e9:.2f}",
            f"{row['step_ms'] / bound_ms(facts, row):.3f}",
            f"{row['reserved_gb']:.2f}",
            f"{row['allocated_gb']:.2f}",
            f"{row['setup_s']:.1f}",
            "yes" if row["equal_to_resident"] else "no",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def draw(facts: dict, path: Path) -> None:
    """Step time against reserved memory, a panel per frame count, the bound drawn in."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["frames"] for row in facts["rows"]})
    figure, axes = plt.subplots(1, len(counts), figsize=(4.5 * len(counts), 4), squeeze=False)
    for axis, frames in zip(axes[0], counts, strict=True):
        rows = [row for row in facts["rows"] if row["frames"] == frames]
        for row in rows:
            axis.scatter(row["reserved_gb"], row["step_ms"], s=50, label=row["mode"])
        bound = max(bound_ms(facts, row) for row in rows)
        axis.axhline(bound, color="gray", linestyle="--", label="bound of streaming all blocks")
        axis.set(
            title=f"{frames} frame{'s' if frames > 1 else ''}",
            xlabel="reserved GPU memory, GB",
            xlim=(0, 1.1 * max(row["reserved_gb"] for row in rows) or None),
            ylim=(0, 1.15 * max(bound, *(row["step_ms"] for row in rows))),
        )
    axes[0][0].set_ylabel("one denoising step, ms")
    axes[0][-1].legend(fontsize=8, loc="lower center")
    figure.suptitle(f"{facts['model']}, 480x832, {facts['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write_report(path: Path) -> str:
    """Write the table and the plot beside a result's JSON; returns the table."""
    facts = json.loads(path.read_text())
    table = make_table(facts)
    path.with_suffix(".md").write_text(table)
    draw(facts, path.with_suffix(".png"))
    return table
