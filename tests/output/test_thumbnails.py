import io

import numpy as np
from PIL import Image

from fastvideo_lightning.output.thumbnails import make_thumbnail
from fastvideo_lightning.output.video import GeneratedVideo


def open_thumbnail(path, **options):
    return Image.open(io.BytesIO(make_thumbnail(path, **options))).convert("RGB")


def test_a_thumbnail_of_a_video_has_its_colours_and_its_shape(tmp_path):
    frames = np.zeros((5, 48, 64, 3), np.uint8)
    frames[..., 0] = 200
    path = GeneratedVideo(frames, "a", 1, 8).save(tmp_path / "a.mp4")
    picture = open_thumbnail(path, width=32)
    assert picture.size == (32, 24)
    red, green, blue = picture.getpixel((16, 12))
    assert red > 150 > 60 > max(green, blue)


def test_a_long_video_is_shown_by_a_frame_of_its_middle(tmp_path):
    frames = np.zeros((900, 16, 16, 3), np.uint8)
    frames[200:700] = 250
    path = GeneratedVideo(frames, "a", 1, 30).save(tmp_path / "a.mp4")
    assert open_thumbnail(path).getpixel((8, 8))[0] > 200


def test_a_picture_has_a_thumbnail_too(tmp_path):
    path = GeneratedVideo(np.full((1, 16, 32, 3), 99, np.uint8), "a", 1, 8).save(tmp_path / "a.png")
    assert open_thumbnail(path, width=16).size == (16, 8)


def test_a_file_that_is_no_video_has_none(tmp_path):
    for name in ("a.mp4", "a.png", "empty.mp4"):
        (tmp_path / name).write_bytes(b"" if name == "empty.mp4" else b"no video at all")
        assert make_thumbnail(tmp_path / name) is None
    assert make_thumbnail(tmp_path / "gone.mp4") is None
