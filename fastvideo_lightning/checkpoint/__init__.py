"""From a folder or a hub id to a pipeline whose weights are still in their files.

Read `folder` (find it on this machine) and `hub` (or download it), `weights` and `components`
(where each weight lies), then `pipeline`. Only `folder` imports nothing slow.
"""

from typing import TYPE_CHECKING

from fastvideo_lightning.libraries import hand_on

if TYPE_CHECKING:
    from fastvideo_lightning.checkpoint.folder import CheckpointError as CheckpointError
    from fastvideo_lightning.checkpoint.pipeline import Checkpoint as Checkpoint
    from fastvideo_lightning.checkpoint.pipeline import load_pipeline as load_pipeline
    from fastvideo_lightning.checkpoint.pipeline import open_checkpoint as open_checkpoint
    from fastvideo_lightning.checkpoint.weights import StoredWeight as StoredWeight

_HOME = {
    "Checkpoint": "pipeline",
    "CheckpointError": "folder",
    "StoredWeight": "weights",
    "load_pipeline": "pipeline",
    "open_checkpoint": "pipeline",
}

__all__ = list(_HOME)


__getattr__ = hand_on(__name__, _HOME)
