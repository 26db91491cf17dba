"""What tiny-shapes can show: 216 combinations of four attributes, a fifth of them held out."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 220, 40),
    "purple": (150, 60, 180),
    "orange": (245, 140, 30),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BACKGROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}

HELD_OUT_RULE = (
    "held out where (color + 2*shape + 3*direction + 4*background) % 5 == 0, each counted from 0 in"
    " the order red green blue yellow purple orange | circle square triangle | left right up down |"
    " black white gray"
)


class Scene(NamedTuple):
    """One combination, by name."""

    color: str
    shape: str
    direction: str
    background: str

    @property
    def attributes(self) -> tuple[int, int, int, int]:
        """The four names as positions in `COLORS`, `SHAPES`, `DIRECTIONS` and `BACKGROUNDS`."""
        return (
            list(COLORS).index(self.color),
            SHAPES.index(self.shape),
            list(DIRECTIONS).index(self.direction),
            list(BACKGROUNDS).index(self.background),
        )

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination, see `HELD_OUT_RULE`."""
        color, shape, direction, background = self.attributes
        return (color + 2 * shape + 3 * direction + 4 * background) % 5 == 0


SCENES = tuple(Scene(*names) for names in product(COLORS, SHAPES, DIRECTIONS, BACKGROUNDS))
HELD_OUT_SCENES = tuple(scene for scene in SCENES if scene.held_out)
TRAINED_SCENES = tuple(scene for scene in SCENES if not scene.held_out)
