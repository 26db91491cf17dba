"""Pictures and videos that go into a pipeline, read from their files."""

from os import PathLike
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
    """Raise unless `path` is None or an image that can be opened.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image.
    """
    if path is None:
        return
    from PIL import Image

    _check_file(name, path, "an existing image")
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:  # Pillow raises whatever a broken file leads it to, SyntaxError too
        raise ValueError(
            f"{name}: {str(path)!r} is no image that can be read ({error}). "
            "Pass a PNG or JPEG file."
        ) from error


def check_video(name: str, path: str | PathLike[str] | None) -> None:
    """Raise unless `path` is None or a file with a video in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no video.
    """
    if path is None:
        return
    import av

    _check_file(name, path, "an existing video")
    try:
        with av.open(path) as container:
            found = len(container.streams.video) > 0
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{name}: {str(path)!r} is no video that can be read ({error}). Pass an mp4 file."
        ) from error
    if not found:
        raise ValueError(f"{name}: {str(path)!r} has no pictures in it. Pass an mp4 file.")


def load_rgb(path: str | PathLike[str]) -> Any:
    """Return the image as diffusers loads it: RGB, turned upright."""
    from diffusers.utils.loading_utils import load_image

    return load_image(str(path))


def load_frames(path: str | PathLike[str]) -> list[Any]:
    """Return every frame of a video as an RGB image."""
    import av

    with av.open(path, "r") as container:
        decoded: Any = container.decode(video=0)
        return [frame.to_image() for frame in decoded]


def check_media(name: str, value: object) -> None:
    """Check a value that may be the path of an image or a video; anything else passes."""
    if (suffix := _suffix(value)) in IMAGE_SUFFIXES:
        check_image(name, value)  # type: ignore[arg-type]
    elif suffix in VIDEO_SUFFIXES:
        check_video(name, value)  # type: ignore[arg-type]


def load_media(value: Any) -> Any:
    """Return what an image's or a video's path stands for; anything else as it is."""
    if (suffix := _suffix(value)) in IMAGE_SUFFIXES:
        return load_rgb(value)
    return load_frames(value) if suffix in VIDEO_SUFFIXES else value


def _suffix(value: object) -> str | None:
    return Path(value).suffix.lower() if isinstance(value, str | PathLike) else None


def _check_file(name: str, path: str | PathLike[str], wanted: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{name}: there is no file {str(path)!r}. Pass the path of {wanted}."
        )
