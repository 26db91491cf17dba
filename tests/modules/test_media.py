"""Pictures and videos that go in: whole, upright and in the shades that they were saved with."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fastvideo_lightning.modules.media import check_image, check_video, load_frames, load_rgb

NOISE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
VIDEOS = {  # codec, pixels and muxer's options by file name
    "index_in_front.mp4": ("libx264", "yuv420p", {"movflags": "+faststart"}),
    "index_behind.mp4": ("libx264", "yuv420p", {}),
    "fragments.mp4": ("libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "photos.mov": ("mjpeg", "yuvj420p", {"movflags": "+faststart"}),
    "a.mkv": ("libx264", "yuv420p", {}),
    "a.webm": ("libvpx", "yuv420p", {}),
    "a.avi": ("mpeg4", "yuv420p", {}),
    "a.gif": ("gif", "rgb8", {}),
}


def write_video(path: Path, picture: np.ndarray = NOISE, frames: int = 16) -> Path:
    """Write a video that moves sideways, as the table says for a file of its name."""
    codec, pixels, options = VIDEOS.get(path.name, ("libx264", "yuv420p", {}))
    height, width, _ = picture.shape
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for shift in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    part = path.with_name(f"part_{path.name}")
    part.write_bytes(content[: int(len(content) * share)])
    return part


@pytest.mark.parametrize("share", [0.9, 0.5])
@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_that_is_cut_off_is_refused_by_name(name, share, tmp_path) -> None:
    whole = write_video(tmp_path / name)
    check_video("video_path", whole)
    assert len(load_frames(whole)) == 16
    with pytest.raises(ValueError, match=rf"video_path: '.*part_{name}' is no video"):
        check_video("video_path", cut(whole, share))


def test_a_video_whose_middle_is_damaged_is_refused(tmp_path) -> None:
    path = write_video(tmp_path / "index_in_front.mp4")
    check_video("video_path", path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(content)  # what was said of the file before does not count for this one
    with pytest.raises(ValueError, match=r"index_in_front\.mp4' is no video"):
        check_video("video_path", path)
    with pytest.raises(ValueError, match=r"index_in_front\.mp4' is no video"):
        load_frames(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff", "ppm", "jp2"])
def test_a_picture_that_is_cut_off_is_refused_by_name(suffix, tmp_path) -> None:
    whole = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(whole)
    check_image("image_path", whole)
    assert load_rgb(whole).size == (96, 64)
    part = cut(whole, 0.5)
    with pytest.raises(ValueError, match=rf"image_path: '.*part_a\.{suffix}' is no image"):
        check_image("image_path", part)
    with pytest.raises(ValueError, match=rf"part_a\.{suffix}' is no image"):
        load_rgb(part)


LEFT_IS_RED = np.zeros((32, 64, 3), np.uint8)
LEFT_IS_RED[:, :32, 0] = 230
ONE = 0x10000
MATRICES = {  # a, b, c, d of a track's header, and what a player shows
    "clockwise": ((0, ONE, -ONE, 0), lambda picture: np.rot90(picture, -1)),
    "half": ((-ONE, 0, 0, -ONE), lambda picture: np.rot90(picture, 2)),
    "counter": ((0, -ONE, ONE, 0), lambda picture: np.rot90(picture, 1)),
    "mirrored": ((-ONE, 0, 0, ONE), lambda picture: picture[:, ::-1]),
    "upside_down": ((ONE, 0, 0, -ONE), lambda picture: picture[::-1]),
    "transposed": ((0, ONE, ONE, 0), lambda picture: picture.transpose(1, 0, 2)),
    "as_it_is": ((ONE, 0, 0, ONE), lambda picture: picture),
}


def write_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    content = bytearray(path.read_bytes())
    begin = content.find(b"tkhd") + 4
    place = begin + 4 + (32 if content[begin] == 1 else 20) + 16
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("turn", MATRICES)
def test_frames_stand_as_a_player_shows_them(turn, tmp_path) -> None:
    matrix, show = MATRICES[turn]
    picture = LEFT_IS_RED.copy()
    picture[:8, :, 2] = 230  # so that up and down differ too
    path = write_matrix(write_video(tmp_path / "a.mp4", picture, frames=1), *matrix)
    check_video("video_path", path)
    (frame,) = load_frames(path)
    shown = show(picture).astype(int)
    assert np.asarray(frame).shape == shown.shape
    assert np.abs(np.asarray(frame).astype(int) - shown).mean() < 20


def test_frames_that_are_turned_by_no_quarter_are_refused(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", LEFT_IS_RED, frames=1)
    write_matrix(path, 46341, 46341, -46341, 46341)
    with pytest.raises(ValueError, match=r"a\.mp4'.*no multiple of 90 degrees"):
        check_video("video_path", path)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.jp2", "a.pgm"])
def test_grey_of_16_bits_is_scaled_to_8(name, tmp_path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    check_image("image_path", tmp_path / name)
    picture = load_rgb(tmp_path / name)
    assert picture.mode == "RGB"
    expected = np.dstack([(ramp / 257).round()] * 3)
    assert np.abs(np.asarray(picture) - expected).max() <= 2


def test_grey_of_16_bits_is_turned_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: show it turned clockwise
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png", exif=exif)
    assert load_rgb(tmp_path / "a.png").size == (32, 64)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_which_no_white_is_known_are_refused(dtype, tmp_path) -> None:
    Image.fromarray(np.full((8, 8), 7, dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"32 bits each.*save it with 8 or 16 bits"):
        check_image("image_path", tmp_path / "a.tiff")
