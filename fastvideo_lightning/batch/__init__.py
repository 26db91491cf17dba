"""Many prompts into one folder, resumed where a run was left.

Read `folder` (who may write into it), `manifest` (what is finished and how it came about), then
`videos` (the loop) and `writer`. `identity` is what a video is known by. `gallery` shows a folder.
"""

from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.batch.manifest import Entry, Manifest
from fastvideo_lightning.batch.videos import VideoBatch

__all__ = ["BatchFolder", "Entry", "Manifest", "StorageError", "VideoBatch"]
