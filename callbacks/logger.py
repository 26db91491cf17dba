"""VideoLogger: hands times, memory and videos to Fabric's loggers."""

from typing import Protocol, runtime_checkable

import lightning as L
import torch

from fastvideo_lightning.output import GeneratedVideo


@runtime_checkable
class TakesVideos(Protocol):
    """A logger's writer that shows videos, as TensorBoard's does."""

    def add_video(self, tag: str, vid_tensor: torch.Tensor, global_step: int, fps: int) -> None: ...  # noqa: D102


class VideoLogger:
    """Logs a row for each video, and the video where the logger can show one.

    The numbers are `generation_time_s`, `seed`, `num_frames` and, on a GPU,
    `peak_gpu_memory_gib`. The step is the number of the video; `state_dict` keeps it, so that a run
    that goes on from a checkpoint numbers on.

    Args:
        log_videos: Hand over the frames too, to loggers whose `experiment` has TensorBoard's
            `add_video` (it needs moviepy).
    """

    def __init__(self, *, log_videos: bool = True) -> None:
        self.log_videos = log_videos
        self.num_videos = 0

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
        fabric.log_dict(numbers, step=self.num_videos)
        for logger in fabric.loggers if self.log_videos and fabric.is_global_zero else ():
            writer = getattr(logger, "experiment", None)
            if isinstance(writer, TakesVideos):
                frames = torch.from_numpy(outputs.frames).permute(0, 3, 1, 2)[None]
                writer.add_video(outputs.prompt, frames, self.num_videos, outputs.fps)
        self.num_videos += 1

    def state_dict(self) -> dict[str, object]:
        """How many videos were logged."""
        return {"num_videos": self.num_videos}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on from a number of videos."""
        self.num_videos = int(str(state_dict["num_videos"]))
