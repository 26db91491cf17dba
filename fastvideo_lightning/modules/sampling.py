"""Sampling settings: a checkpoint's own, and the checks that need no weight."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from os import PathLike
from typing import Any, Self

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.media import load_rgb
from fastvideo_lightning.weights import CheckpointError


@dataclass(frozen=True)
class SamplingDefaults:
    """What `sampling.json` beside the weights says.

    Attributes:
        values: `SamplingParams` fields.
        trained: Lowest and highest value seen in training, by field.
    """

    values: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Self:
        """Read the file's content; anything unknown or impossible is a CheckpointError."""
        values = {name: value for name, value in content.items() if name != "trained"}
        try:
            SamplingParams.from_mapping(values)
            trained = {
                str(name): (int(low), int(high))
                for name, (low, high) in content.get("trained", {}).items()
            }
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"sampling.json of the checkpoint is wrong: {error}") from error
        return cls(values, trained)

    def over(self, family: SamplingParams) -> SamplingParams:
        """Return the family's sampling with the checkpoint's values in place."""
        return family.merge(**self.values)

    def warn_outside(self, params: SamplingParams) -> None:
        """Warn once for each field that lies outside what the model was trained for."""
        for name, (low, high) in self.trained.items():
            value = getattr(params, name)
            if value is not None and not low <= value <= high:
                warnings.warn(
                    f"{name}={value} is outside of what this model was trained for "
                    f"({low} to {high}): expect a poor video.",
                    stacklevel=3,
                )


def fit_image(
    params: SamplingParams, path: str | PathLike[str], height_step: int, width_step: int
) -> SamplingParams:
    """Return the settings with the image's shape, in about the area that they have.

    Args:
        params: Settings with a height and a width.
        path: The image.
        height_step: What the height is a multiple of.
        width_step: What the width is a multiple of.
    """
    assert params.height is not None
    assert params.width is not None
    width, height = load_rgb(path).size
    scale = sqrt(params.height * params.width / (height * width))
    return params.merge(
        height=max(int(height * scale) // height_step, 1) * height_step,
        width=max(int(width * scale) // width_step, 1) * width_step,
    )


class GridError(ValueError):
    """A value is none of those that the model can make; the message names the nearest that is.

    Args:
        name: The field of `SamplingParams`.
        value: What came.
        grid: What the model can make.
    """

    def __init__(self, name: str, value: int, grid: range) -> None:
        super().__init__(name, value, grid)  # what it is made of again in another process
        self.name, self.value, self.grid = name, value, grid

    def __str__(self) -> str:
        first, step, last = self.grid[0], self.grid.step, self.grid[-1]
        clamped = min(max(self.value, first), last)
        nearest = min(first + step * ((clamped - first + step // 2) // step), last)
        kind = f"a multiple of {step}" if first == step else f"{first} plus a multiple of {step}"
        kind = "a whole number" if step == 1 else kind
        return (
            f"{self.name} must be {kind}, {first} to {last}, got {self.value}. "
            f"The nearest that this model can make is {self.name}={nearest}."
        )

    def at_most(self, most: int) -> "GridError":
        """Return the same error where nothing above `most` may be asked for."""
        grid = range(self.grid.start, min(self.grid.stop, most + 1), self.grid.step)
        return GridError(self.name, self.value, grid) if grid else self


def check_grid(name: str, value: int, *, first: int, step: int, last: int) -> None:
    """Raise `GridError` unless `value` is one of first, first + step, ..., last."""
    grid = range(first, last + 1, step)
    if value not in grid:
        raise GridError(name, value, grid)
