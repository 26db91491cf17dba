"""Clips of one shape crossing the picture, drawn on the device, many at a time."""

from __future__ import annotations

import math
from functools import cache

import torch

from .scenes import BACKGROUNDS, COLORS, DIRECTIONS

RADIUS_RANGE = (0.16, 0.22)  # of the side of a square as large as the picture
TRAVEL_RANGE = (0.6, 0.9)  # of the room that the shape leaves along its way
# A short clip's way is no longer than this times its steps: four frames share one latent frame, and
# what crosses most of the picture within them is a blur to the autoencoder and to the eye.
MAX_ROOM_PER_STEP_PX = 5.5
MARGIN_PX = 1.0
# Sizes at radius 1 that look alike: half the side of a square, the circumradius of a triangle.
SQUARE_HALF_SIDE = 0.9
TRIANGLE_CIRCUMRADIUS = 1.35
# How far circle, square and triangle reach left, up, right and down of their centre.
_REACH = (
    (1.0, 1.0, 1.0, 1.0),
    (SQUARE_HALF_SIDE,) * 4,
    (
        TRIANGLE_CIRCUMRADIUS * math.sqrt(3) / 2,
        TRIANGLE_CIRCUMRADIUS,
        TRIANGLE_CIRCUMRADIUS * math.sqrt(3) / 2,
        TRIANGLE_CIRCUMRADIUS / 2,
    ),
)


def draw_clips(
    attributes: torch.Tensor,
    *,
    num_frames: int,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw one clip per row of attributes, with random size, place and speed.

    The shape is as large a part of a narrow picture as of a square one. It covers 60 to 90 % of the
    free way along its direction, in short clips of a part of it, and never leaves the picture.

    Args:
        attributes: `[batch, 4] int64`, rows as in `Scene.attributes`.
        num_frames: frames per clip, at least 2.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        generator: of the random numbers, on the device of `attributes`; the default one if None.

    Returns:
        `[batch, 3, frames, height, width] float32` in -1..1, on the device of `attributes`.
    """
    device = attributes.device
    color, shape, direction, background = attributes.unbind(1)
    draws = torch.rand(4, len(attributes), 1, device=device, generator=generator)
    side = math.sqrt(height * width)
    radius = side * (RADIUS_RANGE[0] + draws[0] * _span(RADIUS_RANGE))  # [batch, 1]
    reach = _table(_REACH, device)[shape] * radius
    longest = MAX_ROOM_PER_STEP_PX * (num_frames - 1)
    centers = _centers(direction, reach, draws[1:], height=height, width=width, longest=longest)
    time = torch.linspace(0, 1, num_frames, device=device).view(1, -1, 1)
    path = centers[0].unsqueeze(1).lerp(centers[1].unsqueeze(1), time)  # [batch, frames, 2]
    coverage = _coverage(path, radius.view(-1, 1, 1, 1), shape.view(-1, 1, 1, 1), height, width)
    paint = _table(tuple(COLORS.values()), device)[color] / 127.5 - 1
    ground = _table(tuple(BACKGROUNDS.values()), device)[background] / 127.5 - 1
    paint, ground = paint.view(-1, 3, 1, 1, 1), ground.view(-1, 3, 1, 1, 1)
    return ground + (paint - ground) * coverage.unsqueeze(1)


def _centers(
    direction: torch.Tensor,
    reach: torch.Tensor,
    draws: torch.Tensor,
    *,
    height: int,
    width: int,
    longest: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the centres start and end, `[batch, 2]` each as x, y in pixels."""
    heading = _table(tuple(DIRECTIONS.values()), direction.device)[direction]
    low = reach[:, :2] + MARGIN_PX
    high = _table(((width, height),), direction.device) - reach[:, 2:] - MARGIN_PX
    room = high - low
    share = TRAVEL_RANGE[0] + draws[0] * _span(TRAVEL_RANGE)
    travel = room.clamp(max=longest) * share * heading.abs()
    first = low + (room - travel) * torch.cat((draws[1], draws[2]), dim=1)
    forward = (heading >= 0).float()
    return first + travel * (1 - forward), first + travel * forward


def _coverage(
    path: torch.Tensor, radius: torch.Tensor, shape: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """How much of each pixel the shape covers, `[batch, frames, height, width]` in 0..1."""
    x = torch.arange(width, device=path.device) + 0.5 - path[..., :1]
    y = torch.arange(height, device=path.device) + 0.5 - path[..., 1:]
    x, y = x.unsqueeze(-2).abs(), y.unsqueeze(-1)
    circle = (x.square() + y.square()).sqrt() - radius
    square = torch.maximum(x, y.abs()) - SQUARE_HALF_SIDE * radius
    inner_radius = TRIANGLE_CIRCUMRADIUS / 2 * radius
    triangle = torch.maximum(y, math.sqrt(0.75) * x - y / 2) - inner_radius
    distance = torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))
    return (0.5 - distance).clamp(0, 1)


@cache
def _table(rows: tuple[tuple[float, ...], ...], device: torch.device) -> torch.Tensor:
    """A constant on the device, made once: a CUDA graph may not copy from the host."""
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _span(bounds: tuple[float, float]) -> float:
    return bounds[1] - bounds[0]
