"""Many prompts into one folder, by any number of processes, resumed where a run was left.

Read `session` (who is at the folder), `claims` (who makes which prompt), `manifest` (what is
finished and how it came about) and `folder` (all three together), then `videos` (the loop) and
`writer`. `identity` is what a video is known by. `gallery` shows a folder.
"""

from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.batch.manifest import Entry, Manifest
from fastvideo_lightning.batch.videos import VideoBatch

__all__ = ["BatchFolder", "Entry", "Manifest", "StorageError", "VideoBatch"]
