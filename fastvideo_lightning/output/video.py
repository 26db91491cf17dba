"""What a run leaves behind: the video in memory, its mp4 and its pictures."""

import base64
import errno
import html
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from fastvideo_lightning.output.files import check_output_folder, give_name, whole_or_nothing


class ShortRepr:
    """Shows the arrays of a dataclass made with `repr=False` by dtype and shape."""

    def __repr__(self) -> str:
        fields_of: tuple[Any, ...] = fields(self)  # type: ignore[arg-type]
        shown = (f"{field.name}={_show(getattr(self, field.name))}" for field in fields_of)
        return f"{type(self).__name__}({', '.join(shown)})"


def _show(value: Any) -> str:
    is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    return f"<{value.dtype} {list(value.shape)}>" if is_array else repr(value)


Frames = npt.NDArray[np.uint8]

_X264_OPTIONS = {
    "crf": "17",
    # With macroblock-tree rate control, equal frames gave files that differ from call to call.
    "x264-params": "no-mbtree=1",
}


@dataclass(frozen=True, repr=False)
class Audio(ShortRepr):
    """A sound.

    Attributes:
        samples: `[channels, samples] float32` in -1..1, one channel or two.
        sampling_rate: Samples per second.

    Raises:
        ValueError: If `samples` has another shape or dtype.
    """

    samples: npt.NDArray[np.float32]
    sampling_rate: int

    def __post_init__(self) -> None:
        shape, dtype = np.shape(self.samples), getattr(self.samples, "dtype", None)
        if dtype != np.float32 or len(shape) != 2 or shape[0] not in (1, 2):
            raise ValueError(
                f"samples must be float32 [channels, samples] of one or two channels, got {dtype} "
                f"{list(shape)}. Put the channels first."
            )


@dataclass(repr=False)
class GeneratedVideo(ShortRepr):
    """One video and how it came about.

    Attributes:
        frames: `[frames, height, width, 3] uint8`, RGB.
        prompt: The text it was made from.
        seed: The seed of its noise.
        fps: Frames per second when it is played.
        audio: The sound that goes with it, or None.
        index: Its place among the prompts of the run.
        video_path: The written file, or None while there is none.
        generation_time_s: Seconds from the prompt to the frames.
        peak_gpu_memory_gib: GiB reserved at most on the GPU, or None without one.
        num_replans: How often it was begun again with less on the GPU, having run out of memory.

    Raises:
        ValueError: If `frames` has another shape or dtype, or is empty.
    """

    frames: Frames
    prompt: str
    seed: int
    fps: int
    index: int = 0
    video_path: Path | None = None
    generation_time_s: float = 0.0
    peak_gpu_memory_gib: float | None = None
    num_replans: int = 0
    audio: Audio | None = None

    def __post_init__(self) -> None:
        shape, dtype = np.shape(self.frames), getattr(self.frames, "dtype", None)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(
                f"frames must be uint8 [frames, height, width, 3], got {dtype} {list(shape)}. "
                "Scale to 0..255, cast to uint8 and put the colours last."
            )

    @property
    def summary(self) -> str:
        """What was made, in a line: size, length, seed and time."""
        frames, height, width, _ = self.frames.shape
        length = f"{frames} frames at {self.fps} fps" if frames > 1 else "one frame"
        made = f"made in {self.generation_time_s:.1f} s"
        return f"{width}x{height}, {length}, seed {self.seed}: {made}"

    def _repr_html_(self) -> str:
        """Show it in a notebook: the video itself, or the picture, with its summary."""
        is_picture = len(self.frames) == 1
        with TemporaryDirectory() as folder:
            there = self.video_path is not None and self.video_path.is_file()
            path = self.video_path if there else None
            path = path or self.save(Path(folder) / ("one.png" if is_picture else "all.mp4"))
            content = base64.b64encode(path.read_bytes()).decode()
        if path.suffix == ".png":
            shown = f'<img src="data:image/png;base64,{content}">'
        else:
            shown = f'<video controls loop src="data:video/mp4;base64,{content}"></video>'
        title, said = html.escape(self.prompt, quote=True), html.escape(self.summary)
        return f'<figure title="{title}">{shown}<figcaption>{said}</figcaption></figure>'

    def to(self, device: object, **_: object) -> Self:
        """Return itself: frames are in host memory. The Trainer moves results, or copies them."""
        return self

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the video as H.264 mp4, or one frame as PNG, and return its path.

        The file appears whole or not at all: it is written under a temporary name beside `path` and
        renamed. H.264 with 4:2:0 colours needs even sides, so an odd side gets its last row or
        column of pixels twice.

        Raises:
            ValueError: If `path` does not end in `.mp4`, nor in `.png` for one frame.
            OSError: If the file cannot be written.
        """
        path = Path(os.path.expanduser(path))
        if path.suffix.lower() == ".png" and len(self.frames) == 1:
            _write_png(self.frames[0], path)
            return path
        if path.suffix.lower() != ".mp4":
            raise ValueError(
                f"path must end in .mp4, got {str(path)!r}. Pass {str(path.with_suffix('.mp4'))!r}."
            )
        with _whole_video(path) as part:
            _encode_mp4(self.frames, part, self.fps, self.audio)
        return path

    def save_as_prompt(
        self, folder: str | os.PathLike[str], *, suffix: str = ".mp4", name: str | None = None
    ) -> Path:
        """Write the video into `folder` under the first free name that suits the prompt.

        Args:
            folder: It is made if need be.
            suffix: `.mp4`, or `.png` for one frame.
            name: What to call it in the place of the prompt.

        Returns:
            The path: `<prompt>.mp4`, or `<prompt>_1.mp4` and so on where that is taken. Two
            processes never get the same one.

        Raises:
            ValueError, OSError: As `check_output_folder` and `save`.
        """
        part = check_output_folder(folder) / f".{uuid4().hex}{suffix}"
        try:
            self.save(part)
            return give_name(part, name or self.prompt)
        finally:
            part.unlink(missing_ok=True)

    def save_frames(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each frame into `folder` as `frame_0000.png` and so on; return the paths."""
        folder = check_output_folder(folder)
        paths = [folder / f"frame_{number:04d}.png" for number in range(len(self.frames))]
        for frame, path in zip(self.frames, paths, strict=True):
            _write_png(frame, path)
        return paths

    def as_moving_image(self) -> bytes:
        """Return a GIF that plays without end, in 256 colours a frame; one frame alone as PNG."""
        from PIL import Image

        first, *others = (Image.fromarray(frame) for frame in self.frames)
        file, duration_ms = io.BytesIO(), 1000 / self.fps
        if others:
            first.save(
                file, "GIF", save_all=True, append_images=others, duration=duration_ms, loop=0
            )
        else:
            first.save(file, "PNG")
        return file.getvalue()


@contextmanager
def _whole_video(path: Path) -> Iterator[Path]:
    """As `whole_or_nothing`; a full disk is told in our words."""
    try:
        with whole_or_nothing(path) as part:
            yield part
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        full = OSError(
            f"There is no space left to write the video into {str(path.parent)!r}. Free some space "
            "and run the same again."
        )
        full.errno = errno.ENOSPC  # not as an argument: the message would begin with it
        raise full from error


def _write_png(frame: Frames, path: Path) -> None:
    from PIL import Image

    with _whole_video(path) as part:
        Image.fromarray(frame).save(part, format="PNG")


def _encode_mp4(frames: Frames, path: Path, fps: int, audio: Audio | None = None) -> None:
    """Encode `[frames, height, width, 3] uint8` RGB as H.264, BT.709, 4:2:0, and sound as AAC."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    _, height, width, _ = frames.shape
    odd_sides = ((0, height % 2), (0, width % 2), (0, 0))
    # The index goes to the front, so that a browser plays before it has the whole file.
    options = {"movflags": "+faststart"}
    with av.open(path, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options=_X264_OPTIONS)
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        coder = stream.codec_context
        # Without these tags players guess, small videos one way and large ones another.
        coder.colorspace = coder.color_primaries = coder.color_trc = Colorspace.ITU709
        coder.color_range = ColorRange.MPEG
        # All streams are declared before the first packet writes the header.
        sound = None if audio is None else _add_sound(container, audio)
        for rgb in frames:
            picture = np.pad(rgb, odd_sides, mode="edge")
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _mux_sound(container, sound, audio)


def _add_sound(container: Any, audio: Audio) -> Any:
    layout = "mono" if len(audio.samples) == 1 else "stereo"
    return container.add_stream("aac", rate=audio.sampling_rate, layout=layout)


def _mux_sound(container: Any, stream: Any, audio: Audio) -> None:
    import av

    # Encoders disagree on what lies outside of -1..1: it is cut off here.
    samples = np.ascontiguousarray(audio.samples.clip(-1, 1))
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
    frame.sample_rate = audio.sampling_rate
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
