"""Finished: whether a folder holds all that was asked for, told without loading a model.

Note [What was asked for]
Which videos a list of prompts means is known once the model's defaults are, and that takes seconds
of imports. So a batch whose videos are all there leaves a note of what it was asked for, to the
letter, and of the files. Whoever asks the same of the same machine is answered by that note. It
only ever says "all there": where anything differs, the batch itself looks.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastvideo_lightning.batch.describe import name_model, versions
from fastvideo_lightning.batch.manifest import DONE, Manifest, sha256_of
from fastvideo_lightning.checkpoint_folder import find_cached, find_folder

FINISHED = ".finished.json"


class Finished:
    """The note in an output folder.

    Args:
        folder: The output folder.
        asked: Everything that was asked for, in values that `repr` tells apart.
        model: A folder or hub id.
        revision: Of a model on the hub.
    """

    def __init__(
        self, folder: Path, asked: Mapping[str, Any], *, model: str, revision: str | None = None
    ) -> None:
        self._path = folder / FINISHED
        self._manifest = Manifest(folder)
        self._model = find_folder(model, revision=revision) or find_cached(model, revision=revision)
        self._asked = asked

    def is_there(self) -> bool:
        """Whether the very same was asked for before and every file of then is still whole."""
        is_file = self._path.is_file() and not self._path.is_symlink()  # a pipe would never end
        if not is_file or self._model is None:
            return False
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            asked, files, done = kept["asked"], dict(kept["files"]), self._done()
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return False
        return (
            bool(files)
            and asked == self._fingerprint()
            and files.items() <= done.items()
            and all(sha256_of(self._path.parent / name) == sha for name, sha in files.items())
        )

    def keep(self) -> None:
        """Note that all is there; where it cannot be written, the next run looks for itself."""
        if self._model is None:
            return
        folder = self._path.parent
        files = {name: sha for name, sha in self._done().items() if (folder / name).is_file()}
        unfinished = folder / f"{FINISHED}.{uuid4().hex}"
        text = json.dumps({"asked": self._fingerprint(), "files": files})
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(self._path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()

    def _done(self) -> dict[str, str]:
        """The hash of each video that the manifest calls done, by its name in the folder."""
        return {
            entry.file: entry.sha256
            for entry in self._manifest.read(quiet=True)  # the batch has told
            if entry.status == DONE and entry.file and entry.sha256
            if Path(entry.file).name == entry.file
        }

    def _fingerprint(self) -> str:
        """A hash of what was asked for, of the model, and of what the machine computes with."""
        assert self._model is not None
        # `auto` is a GPU where there is one, and dtypes follow from that.
        machine = [platform.node(), sorted(glob("/dev/nvidia*"))]
        machine += sorted(i for i in os.environ.items() if i[0].endswith("VISIBLE_DEVICES"))
        parts = [self._asked, name_model(self._model), _state(self._model), versions(), machine]
        return hashlib.sha256(repr(parts).encode(errors="backslashreplace")).hexdigest()


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file: another checkpoint in its place is another model."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        (os.fspath(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    ]
