"""Sampling settings: a checkpoint's own, and the checks that need no weight."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from os import PathLike
from typing import Any, Self

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.media import load_rgb


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
    params: SamplingParams, image: Any, height_step: int, width_step: int
) -> SamplingParams:
    """Return the settings with the image's shape, in about the area that they have.

    Args:
        params: Settings with a height and a width.
        image: Its path, or what diffusers takes for one: a picture, a list of one, or pixels
            whose last two axes are height and width, or those before the three colours.
        height_step: What the height is a multiple of.
        width_step: What the width is a multiple of.
    """
    assert params.height is not None
    assert params.width is not None
    width, height = image_size(image)
    scale = sqrt(params.height * params.width / (height * width))
    return params.merge(
        height=max(int(height * scale) // height_step, 1) * height_step,
        width=max(int(width * scale) // width_step, 1) * width_step,
    )


def image_size(image: Any) -> tuple[int, int]:
    """Return width and height of an image, as `fit_image` takes it."""
    if isinstance(image, str | PathLike):
        image = load_rgb(image)
    while isinstance(image, list | tuple):
        (image,) = image
    if shape := getattr(image, "shape", None):
        height, width = shape[-3:-1] if shape[-1] == 3 else shape[-2:]
        return width, height
    width, height = image.size
    return width, height


class GridError(ValueError):
    """A value is none of those that the model can make; the message names the nearest that is.

    Args:
        name: The field of `SamplingParams`.
        value: What came.
        grids: What the model can make.
    """

    def __init__(self, name: str, value: int, *grids: range) -> None:
        super().__init__(name, value, *grids)  # what it is made of again in another process
        self.name, self.value, self.grids = name, value, grids

    def __str__(self) -> str:
        kinds = " or ".join(map(_kind_of, self.grids))
        first, last = min(grid[0] for grid in self.grids), max(grid[-1] for grid in self.grids)
        near = (_nearest_in(grid, self.value) for grid in self.grids)
        # Of two that are as near, the larger one.
        nearest = min(near, key=lambda each: (abs(each - self.value), -each))
        return (
            f"{self.name} must be {kinds}, {first} to {last}, got {self.value}. "
            f"The nearest that this model can make is {self.name}={nearest}."
        )

    def at_most(self, most: int) -> "GridError":
        """Return the same error where nothing above `most` may be asked for."""
        cut = (range(g.start, min(g.stop, most + 1), g.step) for g in self.grids)
        grids = [grid for grid in cut if grid]
        return GridError(self.name, self.value, *grids) if grids else self


def _kind_of(grid: range) -> str:
    if grid.step == 1:
        return "a whole number"
    is_multiple = grid[0] == grid.step
    return (
        f"a multiple of {grid.step}" if is_multiple else f"{grid[0]} plus a multiple of {grid.step}"
    )


def _nearest_in(grid: range, value: int) -> int:
    first, step, last = grid[0], grid.step, grid[-1]
    clamped = min(max(value, first), last)
    return min(first + step * ((clamped - first + step // 2) // step), last)


def check_grid(
    name: str, value: int, *, first: int, step: int, last: int, whole_steps: bool = False
) -> None:
    """Raise `GridError` unless `value` is one of first, first + step, ..., last.

    Args:
        name: The field of `SamplingParams`.
        value: Its value.
        first: The least.
        step: From one to the next.
        last: None is above it.
        whole_steps: A multiple of the step will do too.
    """
    grids = [range(first, last + 1, step)]
    grids += [range(step, last + 1, step)] if whole_steps else []
    if not any(value in grid for grid in grids):
        raise GridError(name, value, *grids)
