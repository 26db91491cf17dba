"""VideoWriter: every video of a run becomes a file."""

import os
from collections.abc import Mapping
from pathlib import Path

from fastvideo_lightning.output import (
    GeneratedVideo,
    check_output_folder,
    reserve_video_path,
)


class VideoWriter:
    """Write each video as mp4 under the name of its prompt, and note the path on the video.

    The name is taken before the video is made, as an empty file, so that no other process takes it
    meanwhile; the finished video replaces that file in one step.

    Args:
        output_path: Folder of the videos; it is made if need be.

    Raises:
        ValueError, OSError: At `on_predict_start`, if the folder cannot be written to.
    """

    def __init__(self, output_path: str | os.PathLike[str] = "output/") -> None:
        self.output_path = output_path
        self._reserved: Path | None = None

    def on_predict_start(self) -> None:
        """Check the folder before any work is done."""
        check_output_folder(self.output_path)

    def on_predict_batch_start(
        self, batch: Mapping[str, object], *, is_repeat: bool = False
    ) -> None:
        """Take a free file name for the prompt, unless another process writes the video."""
        self._drop_reservation()
        if is_repeat:
            return
        self._reserved = reserve_video_path(self.output_path, str(batch["prompt"]))

    def on_predict_batch_end(self, outputs: GeneratedVideo, *, is_repeat: bool = False) -> None:
        """Write the video to the name that was taken and set its `video_path`."""
        if is_repeat:
            return
        if self._reserved is None:
            self._reserved = reserve_video_path(self.output_path, outputs.prompt)
        outputs.video_path = outputs.save(self._reserved)
        self._reserved = None

    def on_exception(self) -> None:
        """Give back a name whose video was never written."""
        self._drop_reservation()

    def teardown(self) -> None:
        """Give back a name whose video was never written."""
        self._drop_reservation()

    def _drop_reservation(self) -> None:
        path, self._reserved = self._reserved, None
        if path is not None and path.exists() and path.stat().st_size == 0:
            path.unlink()
