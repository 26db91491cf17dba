"""VideoLogger: hands times, memory and videos to Fabric's loggers."""

import logging
from typing import Protocol, runtime_checkable

import lightning as L
import torch

from fastvideo_lightning.output.video import GeneratedVideo

_log = logging.getLogger(__name__)


@runtime_checkable
class TakesVideos(Protocol):
    """A logger's writer that shows videos."""

    def add_video(self, tag: str, vid_tensor: torch.Tensor, global_step: int, fps: int) -> None: ...  # noqa: D102


class VideoLogger:
    """Logs a row for each video, and the video where the logger can show one.

    The numbers are `generation_time_s`, `seed`, `num_frames` and, on a GPU,
    `peak_gpu_memory_gib`. The step is the number of the video; `state_dict` keeps it, so that a run
    that goes on from a checkpoint numbers on.

    TensorBoard gets the video as a GIF among its images, which is how it shows videos: each frame
    has 256 colours and lasts a multiple of 10 ms. Other loggers get the frames where their
    `experiment` has an `add_video` like TensorBoard's.

    What the loggers hold back is saved when a run ends, however it does. They stay open: another
    run with the same ones adds its rows.

    Args:
        log_videos: Hand over the frames too. A logger that takes none is named once.
    """

    def __init__(self, *, log_videos: bool = True) -> None:
        self.log_videos = log_videos
        self.num_videos = 0
        self._named: set[str] = set()
        self._holds_rows = False

    def on_predict_batch_end(
        self, fabric: L.Fabric, outputs: GeneratedVideo, is_repeat: bool = False
    ) -> None:
        """Log one video."""
        if is_repeat:
            return
        numbers: dict[str, float] = {
            "generation_time_s": outputs.generation_time_s,
            "seed": outputs.seed,
            "num_frames": len(outputs.frames),
        }
        if outputs.peak_gpu_memory_gib is not None:
            numbers["peak_gpu_memory_gib"] = outputs.peak_gpu_memory_gib
        self._holds_rows = True
        fabric.log_dict(numbers, step=self.num_videos)
        for logger in fabric.loggers if self.log_videos and fabric.is_global_zero else ():
            self._hand_over(outputs, type(logger).__name__, getattr(logger, "experiment", None))
        self.num_videos += 1

    def on_predict_end(self, fabric: L.Fabric) -> None:
        """Have the loggers write what they hold back, as `CSVLogger` does up to 100 rows."""
        self._save(fabric)

    def on_exception(self, fabric: L.Fabric) -> None:
        """Keep the rows of a run that broke, or that was left."""
        self._save(fabric)

    def state_dict(self) -> dict[str, object]:
        """How many videos were logged."""
        return {"num_videos": self.num_videos}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on from a number of videos."""
        self.num_videos = int(str(state_dict["num_videos"]))

    def _save(self, fabric: L.Fabric) -> None:
        """Save what was logged: not by `finalize`, which may close a logger for good.

        A logger without a row is left alone: saving would make its folder.
        """
        if not self._holds_rows or not fabric.is_global_zero:
            return
        self._holds_rows = False
        for logger in fabric.loggers:
            logger.save()

    def _hand_over(self, video: GeneratedVideo, logger_name: str, writer: object) -> None:
        if _is_tensorboards(writer):
            _add_moving_image(writer, video, self.num_videos)
        elif isinstance(writer, TakesVideos):
            frames = torch.from_numpy(video.frames).permute(0, 3, 1, 2)[None]
            writer.add_video(video.prompt, frames, self.num_videos, video.fps)
        elif logger_name not in self._named:
            self._named.add(logger_name)
            _log.info(
                "%s takes no videos, so VideoLogger gives it the numbers alone. Add a "
                "TensorBoardLogger, or VideoWriter(...) for files; log_videos=False says that "
                "the numbers are enough.",
                logger_name,
            )


def _is_tensorboards(writer: object) -> bool:
    """Whether it is torch's writer for TensorBoard; its `add_video` would need moviepy."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return isinstance(writer, SummaryWriter)


def _add_moving_image(writer: object, video: GeneratedVideo, step: int) -> None:
    """Write a video to TensorBoard's file as `add_video` does, but encoded by Pillow."""
    from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]

    _, height, width, channels = video.frames.shape
    encoded = video.as_moving_image()
    image = Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=encoded
    )
    summary = Summary(value=[Summary.Value(tag=video.prompt, image=image)])
    writer._get_file_writer().add_summary(summary, step)  # type: ignore[attr-defined]
