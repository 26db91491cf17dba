"""From a folder or a hub id to a pipeline whose weights are still in their files.

Read `folder` (find it on this machine) and `hub` (or download it), `weights` and `components`
(where each weight lies), then `pipeline`. Only `folder` imports nothing slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvideo_lightning.checkpoint.folder import CheckpointError
    from fastvideo_lightning.checkpoint.pipeline import Checkpoint, load_pipeline, open_checkpoint
    from fastvideo_lightning.checkpoint.weights import StoredWeight

_HOME = {
    "Checkpoint": "pipeline",
    "CheckpointError": "folder",
    "StoredWeight": "weights",
    "load_pipeline": "pipeline",
    "open_checkpoint": "pipeline",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "StoredWeight",
    "load_pipeline",
    "open_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
