"""What a run leaves behind.

`video` is one video in memory and how it becomes an mp4 or pictures; `files` finds free names and
writes a file whole or not at all.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvideo_lightning.output.files import check_output_folder
    from fastvideo_lightning.output.video import Audio, Frames, GeneratedVideo

_HOME = {
    "Audio": "video",
    "Frames": "video",
    "GeneratedVideo": "video",
    "check_output_folder": "files",
}

__all__ = [
    "Audio",
    "Frames",
    "GeneratedVideo",
    "check_output_folder",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
