"""The table of what was predicted and what happened."""

GIB = 1 << 30
MOST_MEMORY, MOST_TIME = 1.1, 0.15


def make_table(facts: dict) -> str:
    """The rows as Markdown."""
    lines = [
        "# Predicted against measured",
        "",
        f"{facts['device']}, torch {facts['torch']}, diffusers {facts['diffusers']}, "
        f"Python {facts['python']}, commit {facts['commit']}. One denoising step, "
        f"{facts['size']}, bf16, batch 1, and decoding. Reserved memory may be 10 % above and "
        "never below; the time of a step within 15 %. Times are predicted from rates measured "
        "here (`probe`), and from the table of cards. Budgets are those for which the plan chose "
        "the placement.",
        "",
        _verdict(facts["rows"]),
        "",
        "| model | frames | budgets GiB | placement | reserved GiB, predicted | measured | ratio "
        "| time ms, predicted | from the table | measured | ratio | from the table |",
        "|---" * 12 + "|",
    ]
    for row in facts["rows"]:
        cells = (
            row["model"],
            row["frames"],
            ", ".join(f"{budget:g}" for budget in row["budgets_gib"]) or "-",
            row["where"],
            f"{row['predicted_bytes'] / GIB:.2f}",
            f"{row['measured_bytes'] / GIB:.2f}",
            _ratio(row["predicted_bytes"], row["measured_bytes"]),
            _ms(row["predicted_s"]),
            _ms(row["predicted_from_table_s"]),
            _ms(row["measured_s"]),
            _ratio(row["predicted_s"], row["measured_s"]),
            _ratio(row["predicted_from_table_s"], row["measured_s"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _verdict(rows: list[dict]) -> str:
    """How many rows keep what is promised; memory has none on a CPU."""
    memory = [r["predicted_bytes"] / r["measured_bytes"] for r in rows if r["measured_bytes"]]
    times = [row["predicted_s"] / row["measured_s"] for row in rows]
    kept = sum(1 <= ratio <= MOST_MEMORY for ratio in memory)
    near = sum(abs(ratio - 1) <= MOST_TIME for ratio in times)
    return (
        f"Of {len(rows)} rows, memory holds in {kept}{_range(memory)} and time in "
        f"{near}{_range(times)}."
    )


def _range(ratios: list[float]) -> str:
    return f" ({min(ratios):.3f} to {max(ratios):.3f} of what was measured)" if ratios else ""


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"


def _ratio(predicted: float | None, measured: float) -> str:
    return f"{predicted / measured:.3f}" if predicted and measured else "-"
