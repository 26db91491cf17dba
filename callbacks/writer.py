"""VideoWriter: every video of a run becomes a file."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lightning.fabric import Fabric
from torch import nn

from fastvideo_lightning.callbacks.write_behind import WriteBehind
from fastvideo_lightning.output import (
    GeneratedVideo,
    check_output_folder,
    reserve_video_path,
)

_log = logging.getLogger(__name__)


class VideoWriter:
    """Write each video as mp4 under the name of its prompt, and note the path on the video.

    A picture, which is what a module with `file_suffix` `.png` makes, is written as PNG.

    The name is taken before the video is made, as an empty file, so that no other process takes it
    meanwhile; the finished video replaces that file in one step. It is written while the next video
    is made: `video_path` is set once the file is whole, for all videos by `on_predict_end`. Before
    and after, callbacks hear `on_write_start` and, from the thread that wrote, `on_write_end`. What
    goes wrong is raised where the next video ends, or the run.

    Args:
        output_path: Folder of the videos; it is made if need be.

    Raises:
        ValueError, OSError: At `on_predict_start`, if the folder cannot be written to.
    """

    def __init__(self, output_path: str | os.PathLike[str] = "output/") -> None:
        self.output_path = output_path
        self._reserved: Path | None = None
        self._writes = WriteBehind()

    def on_predict_start(self) -> None:
        """Check the folder before any work is done."""
        check_output_folder(self.output_path)

    def on_predict_batch_start(
        self,
        batch: Mapping[str, object],
        *,
        module: nn.Module | None = None,
        is_repeat: bool = False,
    ) -> None:
        """Take a free file name for the prompt, unless another process writes the video."""
        self._drop_reservation()
        if is_repeat:
            return
        suffix: str = getattr(module, "file_suffix", ".mp4")
        self._reserved = reserve_video_path(self.output_path, str(batch["prompt"]), suffix=suffix)

    def on_predict_batch_end(
        self, fabric: Fabric, outputs: GeneratedVideo, *, is_repeat: bool = False
    ) -> None:
        """Begin to write the video to the name that was taken."""
        if is_repeat:
            return
        if self._reserved is None:
            self._reserved = reserve_video_path(self.output_path, outputs.prompt)
        announce = partial(fabric.call, video=outputs)
        self._writes.put(partial(_write, outputs, self._reserved), announce)
        self._reserved = None

    def on_predict_epoch_end(self) -> None:
        """Wait until the last video is written: at `on_predict_end` all are there."""
        self._writes.finish()

    def on_exception(self) -> None:
        """Finish the video before, and give back a name whose video was never written."""
        self._drop_reservation()
        try:
            self._writes.finish()
        except Exception as error:
            # The exception that ends the run is on its way; this one must not take its place.
            _log.error("The video before could not be written: %s", error)

    def teardown(self) -> None:
        """The same as after an exception."""
        self.on_exception()

    def _drop_reservation(self) -> None:
        path, self._reserved = self._reserved, None
        if path is not None:
            _give_back(path)


def _write(video: GeneratedVideo, path: Path) -> None:
    try:
        video.video_path = video.save(path)
    except BaseException:
        _give_back(path)
        raise


def _give_back(path: Path) -> None:
    """Remove a name that was taken, unless a video has come to stand under it."""
    if path.exists() and path.stat().st_size == 0:
        path.unlink()
