"""The options that benchmarks of a Wan transformer's steps have in common."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.shapes import CONFIGS

RESULTS = Path(__file__).parent / "results"
PATH = click.Path(path_type=Path)


class Numbers(click.ParamType):
    """Whole numbers with something between: ``1,17`` or ``480x832``."""

    def __init__(self, separator: str) -> None:
        self.name = f"N{separator}N"
        self._separator = separator

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Read the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(map(int, value.split(self._separator)))
        except ValueError:
            self.fail(f"expected whole numbers such as {self.name}, got {value!r}", param, ctx)


class Names(click.ParamType):
    """Some of a few names, with commas between."""

    name = "NAME,NAME"

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Read the names."""
        names = value if isinstance(value, tuple) else tuple(value.split(","))
        for name in names:
            if name not in self._known:
                self.fail(f"there is no {name!r}; there are {', '.join(self._known)}", param, ctx)
        return names


def step_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options: which model, how large a video, how long, and where it lies."""
    options = [
        click.option("--model", type=click.Choice(sorted(CONFIGS)), default="wan-1.3b"),
        click.option("--frames", type=Numbers(","), default="1,17", help="Of the videos."),
        click.option("--size", type=Numbers("x"), default="480x832", help="Height and width."),
        click.option("--seconds", default=75.0, help="After which to begin no row."),
        click.option(
            "--weights",
            type=PATH,
            default=Path(tempfile.gettempdir()) / "random-wan",
            help="Where the weights are kept.",
        ),
        click.option("--out", type=PATH, default=RESULTS, help="Where the results go."),
        click.option("--name", default=None, help="Of the result files."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
