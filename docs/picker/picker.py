"""The tables by card and memory in README and the pages, and the picker: all made by the plan.

    python docs/picker/picker.py

plans every row anew (minutes, no network), writes `rows.json` and the table in README. Building the
site calls `on_page_markdown`, which puts picker and tables into the page that asks for them.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = HERE / "rows.json"
README = HERE.parent.parent / "README.md"
BEGIN, END = "<!-- made by docs/picker/picker.py -->", "<!-- end -->"

MODELS = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "Wan 2.1 1.3B",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "Wan 2.1 14B",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "Wan 2.2 A14B",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "Wan 2.2 5B",
}
CARDS = (
    *("RTX 4060", "RTX 3070", "RTX 3060", "RTX 4070", "RTX 5070", "RTX 4060 Ti 16GB"),
    *("RTX 5060 Ti 16GB", "RTX 4080", "RTX 5070 Ti", "RTX 5080", "RTX 3090", "RTX 4090"),
    *("L4", "RTX 5090", "L40S", "RTX A6000", "A100 80GB", "H100", "RTX PRO 6000", "H200"),
)
RAMS_GIB = (16, 32, 64, 128)
# What README shows of them: a card and the memory that often lies beside it.
OFTEN = (
    ("RTX 4060", 16),
    ("RTX 3060", 32),
    ("RTX 4060 Ti 16GB", 32),
    ("RTX 4090", 32),
    ("RTX 4090", 64),
    ("RTX 5090", 64),
    ("H100", 128),
)
_SOLD_GB = (8, 12, 16, 24, 32, 48, 80, 96, 141)  # a driver gives less than the label says
SIZES = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": (480, 832, 81),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": (480, 832, 81),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": (480, 832, 81),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": (704, 1280, 121),
}


def make_rows(
    models: Iterable[str] = MODELS, cards: Any = CARDS, rams_gib: Any = RAMS_GIB
) -> list[dict[str, Any]]:
    """Plan every row."""
    from fastvideo_lightning.plan.table import make_rows

    return [asdict(row) for row in make_rows(models, cards, rams_gib)]


@cache
def read_rows() -> list[dict[str, Any]]:
    """Read the rows that were planned last."""
    found: dict[str, Any] = json.loads(ROWS.read_text(encoding="utf-8"))
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def write_rows(rows: list[dict[str, Any]]) -> None:
    """Write the rows, one on each line."""
    lines = ",\n".join(json.dumps(list(row.values())) for row in rows)
    columns = json.dumps(list(rows[0]))
    ROWS.write_text(f'{{"columns": {columns},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


def minutes(row: dict[str, Any]) -> str:
    """Minutes as the model is published, and with four steps in brackets; a dash where it is none.

    A star says that the checkpoint has to be packed first.
    """
    if row["time_s"] is None:
        return "–"
    whole, few = (
        f"{seconds / 60:.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"
        for seconds in (row["time_s"], row["few_steps_s"])
    )
    return f"{whole} ({few}){'*' * row['is_packed']}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _find(model: str, size: tuple[int, int, int], card: str, ram: int) -> dict[str, Any]:
    for row in read_rows():
        its_size = (row["height"], row["width"], row["num_frames"])
        if (row["model"], its_size, row["card"], row["ram_gib"]) == (model, size, card, ram):
            return row
    raise LookupError(f"no row for {model}, {size}, {card}, {ram} GiB: run {__file__}")


def readme_table() -> str:
    """Return README's table: minutes by card and memory, a column for each model."""
    head = ["card, RAM beside it", *(MODELS[model] for model in SIZES)]
    lines = []
    for card, ram in OFTEN:
        found = [_find(model, size, card, ram) for model, size in SIZES.items()]
        sold_as = next(gb for gb in _SOLD_GB if gb >= found[0]["vram_gib"])
        name = re.sub(r" \d+GB$", "", card)
        lines.append([f"{name} ({sold_as} GB), {ram} GB", *map(minutes, found)])
    return _table(head, lines)


def model_tables() -> str:
    """Return a table for each model and size: minutes by card and host memory."""
    parts = []
    sizes = dict.fromkeys(
        (row["model"], row["height"], row["width"], row["num_frames"]) for row in read_rows()
    )
    for model, height, width, frames in sizes:
        size = (height, width, frames)
        lines = []
        for card in CARDS:
            rows = [_find(model, size, card, ram) for ram in RAMS_GIB]
            if any(row["time_s"] for row in rows):
                vram = f"{rows[0]['vram_gib']:g}"
                lines.append([card, vram, *map(minutes, rows)])
        head = ["card", "VRAM, GiB", *(f"{ram} GB of RAM" for ram in RAMS_GIB)]
        parts.append(f"### {MODELS[model]}, {width}x{height}, {frames} frames")
        parts.append(_table(head, lines))
    return "\n\n".join(parts)


def picker() -> str:
    """Return the block of HTML with the rows in it; it needs nothing else."""
    page = (HERE / "picker.html").read_text(encoding="utf-8")
    rows = json.dumps({"names": MODELS, "rows": read_rows()}, separators=(",", ":"))
    return page.replace("ROWS", rows)


PARTS: dict[str, Callable[[], str]] = {
    "<!-- picker -->": picker,
    "<!-- tables by model -->": model_tables,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the parts in the place of their marks."""
    for mark, make in PARTS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def with_table(readme: str) -> str:
    """Return README's text with the table as the rows are now."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{readme_table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    write_rows(make_rows())
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
