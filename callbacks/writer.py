"""VideoWriter: every video of a run becomes a file."""

import logging
import os
from collections.abc import Mapping
from functools import partial

from lightning.fabric import Fabric
from torch import nn

from fastvideo_lightning.output.files import WriteBehind, check_output_folder
from fastvideo_lightning.output.video import GeneratedVideo

_log = logging.getLogger(__name__)


class VideoWriter:
    """Write each video as mp4 under its name or its prompt, and note the path on the video.

    A picture, which is what a module with `file_suffix` `.png` makes, is written as PNG.

    A video gets the first free name that suits its prompt once its file is whole: a run that is
    killed leaves no empty file, and two processes never write to the same name. It is written while
    the next video is made: `video_path` is set once the file is whole, for all videos by
    `on_predict_end`. Before and after, callbacks hear `on_write_start` and, from the thread that
    wrote, `on_write_end`. What goes wrong is raised where the next video ends, or the run.

    Args:
        output_path: Folder of the videos; it is made if need be.

    Raises:
        ValueError, OSError: At `on_predict_start`, if the folder cannot be written to.
    """

    def __init__(self, output_path: str | os.PathLike[str] = "output/") -> None:
        self.output_path = output_path
        self._writes = WriteBehind()

    def on_predict_start(self) -> None:
        """Check the folder before any work is done."""
        check_output_folder(self.output_path)

    def on_predict_batch_end(
        self,
        fabric: Fabric,
        outputs: GeneratedVideo,
        *,
        batch: object = None,
        module: nn.Module | None = None,
        is_repeat: bool = False,
    ) -> None:
        """Begin to write the video, unless another process does."""
        if is_repeat:
            return
        suffix: str = getattr(module, "file_suffix", ".mp4")
        name = batch.get("name") if isinstance(batch, Mapping) else None
        write = partial(_write, outputs, self.output_path, suffix, name)
        self._writes.put(write, partial(fabric.call, video=outputs))

    def on_predict_epoch_end(self) -> None:
        """Wait until the last video is written: at `on_predict_end` all are there."""
        self._writes.finish()

    def on_exception(self) -> None:
        """Finish the video before."""
        try:
            self._writes.finish()
        except Exception as error:
            # The exception that ends the run is on its way; this one must not take its place.
            _log.error("The video before could not be written: %s", error)

    def teardown(self) -> None:
        """The same as after an exception."""
        self.on_exception()


def _write(
    video: GeneratedVideo, folder: str | os.PathLike[str], suffix: str, name: str | None
) -> None:
    video.video_path = video.save_as_prompt(folder, suffix=suffix, name=name)
