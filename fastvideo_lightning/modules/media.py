"""Pictures and videos that go into a pipeline, read from their files."""

import struct
from functools import lru_cache
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

from fastvideo_lightning.config import SamplingParams

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"})


def check_inputs(params: SamplingParams) -> None:
    """Check the files that go in; raises as `check_image` and `check_video` do."""
    for name in ("image_path", "last_image_path"):
        check_image(name, getattr(params, name))
    check_video("video_path", params.video_path)


def check_image(name: str, path: str | PathLike[str] | None) -> None:
    """Raise unless `path` is None or an image that can be read to its end.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, damaged, cut off, or has values that no white is known of.
    """
    if path is None:
        return
    _check_file(name, path, "an existing image")
    if reason := _why_no_image(*_state_of(path)):
        raise ValueError(
            f"{name}: {str(path)!r} is no image that can be read ({reason}). "
            "Pass a PNG or JPEG file."
        )


def check_video(name: str, path: str | PathLike[str] | None) -> None:
    """Raise unless `path` is None or a video of which every frame can be read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no video, damaged or cut off.
    """
    if path is None:
        return
    _check_file(name, path, "an existing video")
    if reason := _why_no_video(*_state_of(path)):
        raise ValueError(
            f"{name}: {str(path)!r} is no video that can be read ({reason}). Pass an mp4 file."
        )


def load_rgb(path: str | PathLike[str]) -> Any:
    """Return the image as diffusers loads it: RGB, turned upright; of 16 bits, scaled to 8.

    Raises:
        ValueError: If it cannot be read.
    """
    from diffusers.utils.loading_utils import load_image
    from PIL import Image

    try:
        with Image.open(path) as image:
            return load_image(_of_8_bits(image))
    except Exception as error:  # Pillow raises whatever a broken file leads it to, SyntaxError too
        raise ValueError(f"{str(path)!r} is no image that can be read ({error}).") from error


def load_frames(path: str | PathLike[str]) -> list[Any]:
    """Return every frame of a video as an RGB image, as a player shows it.

    Raises:
        ValueError: If they cannot be read.
    """
    import av

    try:
        with av.open(path, "r") as container:
            decoded: Any = container.decode(video=0)
            return [_upright(frame) for frame in decoded]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no video that can be read ({error}).") from error


def _state_of(path: str | PathLike[str]) -> tuple[str, tuple[int, ...]]:
    """A file and what changes with its content: it is read through once, however often checked."""
    state = Path(path).stat()
    return str(path), (state.st_mtime_ns, state.st_size, state.st_ino, state.st_dev)


@lru_cache(maxsize=1024)
def _why_no_image(path: str, state: tuple[int, ...]) -> str:
    """Return why an image cannot be read, or nothing. A header alone tells of no cut."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            _of_8_bits(image).load()
    except Exception as error:  # Pillow raises whatever a broken file leads it to, SyntaxError too
        return str(error) or type(error).__name__
    return ""


def _of_8_bits(image: Any) -> Any:
    """Return a grey picture of 16 bits scaled to 8, others as they are.

    Pillow itself would cut off what is above 255, and so make most of it white.
    """
    import numpy as np
    from PIL import Image

    kind = image.mode.partition(";")[0]
    if kind not in ("I", "F"):
        return image
    # What PNG, PNM and JPEG 2000 hold has 16 bits at most, also where Pillow takes 32 for it.
    if image.mode in ("I", "F") and image.format not in ("PNG", "PPM", "JPEG2000"):
        raise ValueError(
            f"its pixels are of mode {image.mode!r}, 32 bits each, of which none is known to be "
            "white; save it with 8 or 16 bits"
        )
    pixels = np.asarray(image).astype(np.float64) / 257
    scaled = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8), "L")
    scaled.info, exif = dict(image.info), image.getexif()  # which way is up
    scaled.getexif().update(exif)
    return scaled


# Seconds that the last frame may end before the container does, by rounding; or half a frame.
_ENDS_EARLY_S = 0.05


@lru_cache(maxsize=1024)
def _why_no_video(path: str, state: tuple[int, ...]) -> str:
    """Return why a video cannot be read, or nothing.

    A file that is cut off plays up to the cut. What tells of it differs by container: a packet that
    is marked, an index that goes beyond the file's end, a length that is not reached, or a last
    byte that is missing.
    """
    import av

    cut = "it is cut off: its end is missing"
    try:
        with av.open(path) as container:
            if not container.streams.video:
                return "it has no pictures in it"
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frame_s = 1 / float(stream.average_rate or 24)
            size = Path(path).stat().st_size
            if any(entry.pos + entry.size > size for entry in stream.index_entries):
                return cut
            frames, end = 0, 0.0
            for packet in container.demux():
                if packet.is_corrupt:
                    return cut
                start = packet.dts if packet.pts is None else packet.pts
                if start is not None and packet.time_base is not None:
                    lasts = float((packet.duration or 0) * packet.time_base) or frame_s
                    end = max(end, float(start * packet.time_base) + lasts)
                if packet.stream is stream:
                    for frame in packet.decode():
                        _turn_of(frame)
                        frames += 1
            told = (container.start_time or 0) + (container.duration or 0)
            if end + max(_ENDS_EARLY_S, frame_s / 2) < told / av.time_base:
                return cut
            is_gif = container.format.name == "gif"
    except (av.FFmpegError, OSError, ValueError) as error:
        return str(error)
    if is_gif and not Path(path).read_bytes().rstrip(b"\0").endswith(b";"):
        return cut
    return "" if frames else "it has no frames in it"


def _upright(frame: Any) -> Any:
    """Return a decoded frame as an RGB image, turned as its track says."""
    from PIL import Image

    picture = frame.to_image()
    for turn in _turn_of(frame):
        picture = picture.transpose(getattr(Image.Transpose, turn))
    return picture


def _turn_of(frame: Any) -> list[str]:
    """Return Pillow's names of what a player does with a frame before it shows it.

    The matrix of a track takes a pixel (x, y) to (a x + c y, b x + d y); phones write one to say
    which way was up.

    Raises:
        ValueError: If it is turned by other than quarters.
    """
    from av.sidedata.sidedata import Type

    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return []
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    is_lying = abs(b) > abs(a)
    others = (a, d) if is_lying else (b, c)
    across, down = (c, b) if is_lying else (a, d)
    if max(map(abs, others)) > 0.01 * min(abs(across), abs(down)):
        raise ValueError("it is turned by an angle that is no multiple of 90 degrees")
    turns = ["TRANSPOSE"] * is_lying
    turns += ["FLIP_LEFT_RIGHT"] * (across < 0)
    return turns + ["FLIP_TOP_BOTTOM"] * (down < 0)


def check_media(name: str, value: object) -> None:
    """Check a value that may be the path of an image or a video; anything else passes."""
    path = media_path(value)
    if path is not None and path.suffix.lower() in IMAGE_SUFFIXES:
        check_image(name, path)
    elif path is not None:
        check_video(name, path)


def load_media(value: Any) -> Any:
    """Return what an image's or a video's path stands for; anything else as it is."""
    path = media_path(value)
    if path is None:
        return value
    return load_rgb(path) if path.suffix.lower() in IMAGE_SUFFIXES else load_frames(path)


def media_path(value: object) -> Path | None:
    """Return the path of an image or a video that a value is, or None where it is none."""
    if not isinstance(value, str | PathLike):
        return None
    path = Path(expanduser(value))
    return path if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES else None


def _check_file(name: str, path: str | PathLike[str], wanted: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{name}: there is no file {str(path)!r}. Pass the path of {wanted}."
        )
