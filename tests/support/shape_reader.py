"""Reads what a tiny-shapes video shows off its pixels, knowing nothing of how it was made."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 220, 40),
    "purple": (150, 60, 180),
    "orange": (245, 140, 30),
}
_BACKGROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}
_FARTHEST_COLOR = 60.0  # Euclidean, of 255 per channel; the closest two colours lie 81 apart
_FARTHEST_BACKGROUND = 50.0
_LEAST_OVERLAP = 0.75  # of a shape with its ideal; a square and its circle reach 0.83 at best
_LEAST_AREA = 0.02  # of the picture
_LEAST_TRAVEL = 0.08  # of the picture's side along the way
_STRAY_COVERAGE = 0.35  # less than this in a pixel is noise or a soft edge


class Reading(NamedTuple):
    """What was read; `None` where the pixels say nothing clear."""

    color: str | None
    shape: str | None
    direction: str | None
    background: str | None


def read_video(frames: npt.NDArray[np.uint8]) -> Reading:
    """Colour, shape, direction and background of a clip of one shape.

    Args:
        frames: `[frames, height, width, 3] uint8`.

    Returns:
        The four names, each `None` where nothing fits.
    """
    pixels = frames.astype(np.float32)
    ground = _ground_color(pixels)
    background = _nearest(ground, _BACKGROUNDS, _FARTHEST_BACKGROUND)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    inside = distance > 0.6 * np.quantile(distance, 0.99)
    if inside.mean() < _LEAST_AREA / 2 or np.quantile(distance, 0.99) < 40:
        return Reading(None, None, None, background)
    paint = np.median(pixels[_core(inside)], axis=0)
    axis = paint - ground
    coverage = ((pixels - ground) @ axis / max(float(axis @ axis), 1.0)).clip(0, 1)
    coverage = np.where(coverage < _STRAY_COVERAGE, 0, coverage)
    centers = _centers(coverage)
    return Reading(
        _nearest(paint, _COLORS, _FARTHEST_COLOR),
        _read_shape(coverage, centers),
        _read_direction(centers, frames.shape[1], frames.shape[2]),
        background,
    )


def _ground_color(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


def _core(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels whose four neighbours are inside too, unless there are none."""
    core = inside.copy()
    for axis in (1, 2):
        for step in (-1, 1):
            core &= np.roll(inside, step, axis)
    return core if core.any() else inside


def _nearest(
    color: npt.NDArray[np.float32], names: dict[str, tuple[int, int, int]], farthest: float
) -> str | None:
    distances = {name: float(np.linalg.norm(color - value)) for name, value in names.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= farthest else None


def _centers(coverage: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Centroids `[frames, 2]` as x, y in pixels; frames without a shape are NaN."""
    _, height, width = coverage.shape
    area = coverage.sum((1, 2))
    x = (coverage.sum(1) * (np.arange(width) + 0.5)).sum(1)
    y = (coverage.sum(2) * (np.arange(height) + 0.5)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centers = np.stack((x, y), 1) / area[:, None]
    centers[area < _LEAST_AREA * height * width] = np.nan
    return centers


def _read_shape(coverage: npt.NDArray[np.float32], centers: npt.NDArray[np.float32]) -> str | None:
    """The ideal of equal area and centre that most frames overlap with best."""
    there = ~np.isnan(centers[:, 0])
    if there.mean() < 0.9:
        return None
    coverage, centers = coverage[there], centers[there]
    overlaps = {}
    for name, ideal in _ideals(coverage, centers).items():
        union = np.maximum(coverage, ideal).sum((1, 2))
        overlaps[name] = np.minimum(coverage, ideal).sum((1, 2)) / union
    scores = np.stack(list(overlaps.values()))  # [shapes, frames]
    votes = np.bincount(scores.argmax(0), minlength=len(scores))
    best = int(votes.argmax())
    clear = votes[best] >= 0.8 * votes.sum() and np.median(scores[best]) >= _LEAST_OVERLAP
    return list(overlaps)[best] if clear else None


def _ideals(
    coverage: npt.NDArray[np.float32], centers: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """Circle, square and upright equilateral triangle as large as what each frame shows."""
    _, height, width = coverage.shape
    area = coverage.sum((1, 2))[:, None, None]
    x = np.abs(np.arange(width) + 0.5 - centers[:, :1])[:, None, :]
    y = (np.arange(height) + 0.5 - centers[:, 1:])[:, :, None]
    inradius = np.sqrt(area / (3 * np.sqrt(3)))
    outside = {
        "circle": np.hypot(x, y) - np.sqrt(area / np.pi),
        "square": np.maximum(x, np.abs(y)) - np.sqrt(area) / 2,
        "triangle": np.maximum(y, x * np.sqrt(3) / 2 - y / 2) - inradius,
    }
    return {name: (0.5 - distance).clip(0, 1) for name, distance in outside.items()}


def _read_direction(centers: npt.NDArray[np.float32], height: int, width: int) -> str | None:
    """The way the centre goes: far enough, along one axis, and not back."""
    there = centers[~np.isnan(centers[:, 0])]
    if len(there) < max(2, 0.9 * len(centers)):
        return None
    third = max(1, len(there) // 3)
    travel = (there[-third:].mean(0) - there[:third].mean(0)) / (1 - third / len(there))
    along = int(np.abs(travel).argmax())
    if abs(travel[along]) < _LEAST_TRAVEL * (width, height)[along]:
        return None
    if abs(travel[along]) < 2 * abs(travel[1 - along]):
        return None
    steps = np.diff(there[:, along]) * np.sign(travel[along])
    if -steps[steps < 0].sum() > 0.25 * steps[steps > 0].sum():
        return None
    return (("left", "right"), ("up", "down"))[along][int(travel[along] > 0)]
