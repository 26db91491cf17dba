"""What a run leaves behind.

`video` is one video in memory and how it becomes an mp4 or pictures; `thumbnails` has a small one
of a file; `files` finds free names and writes a file whole or not at all.
"""

from typing import TYPE_CHECKING

from fastvideo_lightning.libraries import hand_on

if TYPE_CHECKING:
    from fastvideo_lightning.output.files import check_output_folder as check_output_folder
    from fastvideo_lightning.output.video import Audio as Audio
    from fastvideo_lightning.output.video import Frames as Frames
    from fastvideo_lightning.output.video import GeneratedVideo as GeneratedVideo

_HOME = {
    "Audio": "video",
    "Frames": "video",
    "GeneratedVideo": "video",
    "check_output_folder": "files",
}

__all__ = list(_HOME)


__getattr__ = hand_on(__name__, _HOME)
