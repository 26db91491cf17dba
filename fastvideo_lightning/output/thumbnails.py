"""A small picture of a video, for a page that shows many."""

import io
from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError


def make_thumbnail(path: Path, *, width: int = 320) -> bytes | None:
    """Return a picture of a video or of a PNG as WebP, of a frame near the middle.

    Only the key frame before the middle is decoded, so that it takes milliseconds.

    Args:
        path: An mp4 or PNG file.
        width: Pixels at most; the height follows.

    Returns:
        The bytes; None where the file is none of the two.
    """
    try:
        picture = _open_picture(path) if path.suffix == ".png" else _middle_frame(path)
    except (OSError, ValueError, UnidentifiedImageError):  # av's own errors are these two
        return None
    if picture is None:
        return None
    picture.thumbnail((width, 4 * width))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=70)
    return content.getvalue()


def _open_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _middle_frame(path: Path) -> Image.Image | None:
    with av.open(str(path)) as container:
        if not container.streams.video:
            return None
        stream = container.streams.video[0]
        container.seek((stream.duration or 0) // 2, stream=stream)
        frame = next(container.decode(stream), None)
        return None if frame is None else Image.fromarray(frame.to_ndarray(format="rgb24"))
