"""The reader is right on drawn clips, and says nothing where there is nothing to say."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.shape_reader import Reading, read_video

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from tiny_shapes.drawing import draw_clips  # noqa: E402
from tiny_shapes.scenes import SCENES  # noqa: E402

SIZES = [(17, 64, 64), (9, 48, 48), (33, 96, 96), (9, 48, 96), (25, 96, 48), (13, 80, 64)]


def drawn(num_frames, height, width, seed=0):
    attributes = torch.tensor([scene.attributes for scene in SCENES])
    clips = draw_clips(
        attributes,
        num_frames=num_frames,
        height=height,
        width=width,
        generator=torch.Generator().manual_seed(seed),
    )
    return ((clips + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


@pytest.mark.parametrize(("num_frames", "height", "width"), SIZES)
def test_reads_every_combination_at_every_size(num_frames, height, width):
    clips = drawn(num_frames, height, width)
    wrong = [scene for scene, clip in zip(SCENES, clips, strict=True) if read_video(clip) != scene]
    assert wrong == []


@pytest.mark.parametrize(("num_frames", "height", "width"), [(17, 64, 64), (9, 48, 48)])
def test_reads_through_noise(num_frames, height, width):
    rng = np.random.default_rng(0)
    clips = drawn(num_frames, height, width, seed=1)
    noisy = (clips + rng.normal(0, 12, clips.shape)).clip(0, 255).astype(np.uint8)
    wrong = [scene for scene, clip in zip(SCENES, noisy, strict=True) if read_video(clip) != scene]
    assert wrong == []


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_picture_has_a_background_and_no_shape(level):
    reading = read_video(np.full((17, 64, 64, 3), level, np.uint8))
    assert reading[:3] == (None, None, None)
    assert reading.background == {0: "black", 128: "gray", 255: "white"}[level]


def test_noise_is_no_scene():
    frames = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    assert None in read_video(frames)


def test_a_shape_that_stands_still_has_no_direction():
    clips = drawn(17, 64, 64)[::20]
    for scene, clip in zip(SCENES[::20], clips, strict=True):
        still = np.repeat(clip[:1], 17, axis=0)
        assert read_video(still) == Reading(scene.color, scene.shape, None, scene.background)


def test_a_shape_that_comes_back_has_no_direction():
    clip = drawn(17, 64, 64)[0]
    assert read_video(np.concatenate((clip, clip[::-1]))).direction is None


def test_the_reversed_clip_moves_the_other_way():
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for scene, clip in zip(SCENES[::7], drawn(17, 64, 64)[::7], strict=True):
        assert read_video(clip[::-1]).direction == opposite[scene.direction]


def test_a_blob_between_shapes_or_of_another_color_is_not_read():
    clip = drawn(17, 64, 64)[0]
    bar = np.zeros_like(clip)
    bar[:, 20:24, 5:59] = (220, 40, 40)
    assert read_video(bar).shape is None
    assert read_video(clip[..., [2, 0, 1]]).color != "red"
    bar[:] = clip
    bar[clip.max(-1) > 100] = (40, 220, 220)
    assert read_video(bar).color is None
