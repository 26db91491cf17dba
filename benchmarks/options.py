"""The options that benchmarks have in common."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import find_device
from benchmarks.models import CONFIGS, ON_CPU

RESULTS = Path(__file__).parent / "results"
PATH = click.Path(path_type=Path)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


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


def model(default: str = "wan-1.3b") -> Option:
    """Which shape of model."""
    known = click.Choice(sorted(CONFIGS))
    return click.option("--model", type=known, default=default, show_default=True)


def check_models(*models: str, instead: str = "--model wan-tiny") -> None:
    """Refuse models that a machine without a GPU would take hours or all its memory for.

    Raises:
        click.UsageError: naming what to pass ``instead``.
    """
    if find_device().type == "cpu" and any(model not in ON_CPU for model in models):
        raise click.UsageError(f"this machine has no GPU; pass `{instead}`")


def frames(default: str = "1,17,81") -> Option:
    """How long the videos are."""
    return click.option(
        "--frames", type=Numbers(","), default=default, show_default=True, help="Of the videos."
    )


def size(default: str = "480x832", *, flag: str = "--size", of: str = "") -> Option:
    """How large the videos are."""
    text = f"Height and width{of}."
    return click.option(flag, type=Numbers("x"), default=default, show_default=True, help=text)


def limit(default: float) -> Option:
    """How long the benchmark may take: it ends by itself and leaves what it has."""
    return click.option(
        "--limit-s", default=default, show_default=True, help="Begin nothing after it."
    )


def folder(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where checkpoints of random weights are kept from one benchmark to the next."""
    return click.option(
        "--folder",
        type=PATH,
        default=Path(tempfile.gettempdir()) / "random-wan",
        show_default=True,
        help="Of the checkpoints of random weights; up to 40 GB for wan-14b.",
    )(command)


def output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where results go."""
    return click.option("--output", type=PATH, default=RESULTS, show_default=True)(command)


def name(default: str | None = None) -> Option:
    """What the files of results are called, without their endings."""
    return click.option("--name", default=default, show_default=True, help="Of the result files.")
