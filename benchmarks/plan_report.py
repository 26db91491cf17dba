"""The table of what was predicted and what happened."""

GIB = 1 << 30


def make_table(facts: dict) -> str:
    """The rows as Markdown."""
    lines = [
        "# Predicted against measured",
        "",
        f"{facts['device']}, torch {facts['torch']}, diffusers {facts['diffusers']}, "
        f"Python {facts['python']}, commit {facts['commit']}. One denoising step, "
        f"{facts['size']}, bf16, batch 1, and decoding in fp32. Reserved memory may be 10 % above "
        "and never below; the time of a step within 15 %. Times are predicted from rates measured "
        "here (`probe`), and from the table of cards.",
        "",
        "| model | frames | budget GiB | placement | reserved GiB, predicted | measured | ratio "
        "| time ms, predicted | from the table | measured | ratio |",
        "|---" * 11 + "|",
    ]
    for row in facts["rows"]:
        flags = row["flags"]
        where = "resident"
        if flags.get("dit_layerwise_offload"):
            where = f"streamed, {flags['dit_resident_blocks']} resident"
        predicted_s = row["predicted_s"] or row["predicted_from_table_s"]
        cells = (
            row["model"],
            row["frames"],
            row["budget_gib"] or "-",
            where if flags else "-",
            f"{row['predicted_bytes'] / GIB:.2f}",
            f"{row['measured_bytes'] / GIB:.2f}",
            _ratio(row["predicted_bytes"], row["measured_bytes"]),
            _ms(row["predicted_s"]),
            _ms(row["predicted_from_table_s"]),
            _ms(row["measured_s"]),
            _ratio(predicted_s, row["measured_s"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"


def _ratio(predicted: float | None, measured: float) -> str:
    return f"{predicted / measured:.3f}" if predicted and measured else "-"
