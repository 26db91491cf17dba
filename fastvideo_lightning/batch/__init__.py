"""Many prompts into one folder, so that a run that breaks goes on where it stopped."""

from fastvideo_lightning.batch.folder import BatchFolder, StorageError
from fastvideo_lightning.batch.manifest import Entry, Manifest
from fastvideo_lightning.batch.videos import VideoBatch

__all__ = ["BatchFolder", "Entry", "Manifest", "StorageError", "VideoBatch"]
