"""Rows of a benchmark, in JSON and as Markdown tables, written as each of them comes."""

import json
from pathlib import Path
from typing import Any

import click

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
