"""A figure that must be reached: what it may be, and how it is read off the results."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Results:
    """What was measured, of however many runs; where two hold the same, the first one counts.

    Args:
        contents: of the runs' files, by name.
    """

    def __init__(self, contents: dict[str, dict[str, Any]]) -> None:
        self.contents = contents

    def row(self, model: str, mode: str, frames: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """A row of a streaming run and the run's facts; KeyError where there is none."""
        for content in self.contents.values():
            for row in content.get("rows", ()):
                if (content["model"], row["mode"], row["frames"]) == (model, mode, frames):
                    return content, row
        raise KeyError(mode)

    def part(self, name: str) -> Any:
        """A part of a run of the stages; KeyError where there is none."""
        for content in self.contents.values():
            if name in content:
                return content[name]
        raise KeyError(name)


Read = Callable[[Results], float]


class Target(NamedTuple):
    """One line of the table.

    Attributes:
        name: what is measured.
        bound: what it may not be past, as text.
        limit: the same as a number; the most, or with ``is_least`` the least.
        read: takes the figure from the results; KeyError where they lack it.
        is_least: whether more is better.
        form: how the figure is written.
    """

    name: str
    bound: str
    limit: float
    read: Read
    is_least: bool = False
    form: str = "{:.3f}"
