"""The output folder of a batch: one run at a time, and a name for each video once it is whole.

# Note [Never lost, never twice]
A video is encoded under a temporary name in `.partial/` and synced; its entry is appended to the
manifest and synced; only then does it get its name, by a hard link, which takes no name that is
taken. A process killed before the entry has made nothing, and what it left in `.partial/` goes. One
killed after it has left a whole file there whose hash the entry holds, and the next run gives that
file its name. Were the name given before the entry, a kill in between would leave a video that no
entry knows of, and it would be made twice.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from fastvideo_lightning.batch.manifest import DONE, Entry, Manifest, sha256_of
from fastvideo_lightning.output import GeneratedVideo, check_output_folder, safe_stem

_LOCK, _PARTIAL = ".fastvideo-lightning.lock", ".partial"
# What a file system without hard links answers.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class StorageError(OSError):
    """The output folder takes no more: whatever is made next could not be written either."""


class BatchFolder:
    """Where a batch writes.

    Args:
        path: The folder; it is made if need be.

    Raises:
        ValueError, OSError: As `check_output_folder`.
        StorageError: If a symlink stands where the folder keeps its own files.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_output_folder(path)
        self.manifest = Manifest(self.path)
        self._partial = self.path / _PARTIAL
        self._lock = FileLock(self.path / _LOCK, thread_local=False)
        for own in (self.manifest.path, self._partial, self.path / _LOCK):
            if own.is_symlink():
                raise StorageError(
                    f"{str(own)!r} is a symlink, and nothing is written through one. Remove it, or "
                    "pass another output_path."
                )

    def open(self) -> Counter[str]:
        """Lock the folder, give whole videos of a killed run their names, and remove its rest.

        Returns:
            How often each video, by its identity, is there whole.

        Raises:
            RuntimeError: If another process has locked it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"Another batch is being written into {str(self.path)!r}. Wait until it has ended, "
                "or pass another output_path."
            ) from None
        self._partial.mkdir(exist_ok=True)
        done: Counter[str] = Counter()
        for entry in self._entries():
            if sha256_of(self.path / str(entry.file)) != entry.sha256:
                part = self._part_of(entry)
                if sha256_of(part) != entry.sha256:
                    continue
                self._name(part, entry)
            done[entry.identity] += 1
        for left in self._partial.iterdir():
            left.unlink()
        return done

    def close(self) -> None:
        """Let the next batch have the folder; a second call does nothing."""
        if self._lock.is_locked:
            if self._partial.is_dir() and not any(self._partial.glob("*.mp4")):
                for left in self._partial.iterdir():
                    left.unlink()
                self._partial.rmdir()
            self._lock.release()

    def keep(self, video: GeneratedVideo, entry: Entry) -> Path:
        """Write a video and its entry, and return its path. See Note [Never lost, never twice].

        Raises:
            StorageError: If the folder does not take it.
        """
        part = self._partial / f"{uuid4().hex}.mp4"
        try:
            video.save(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            entry = replace(entry, status=DONE, sha256=sha256_of(part))
            part = part.replace(self._part_of(entry))
            return self._name(part, entry, is_new=True)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self.explain(error, entry.prompt) from error

    def explain(self, error: OSError, prompt: str) -> StorageError:
        """Say what is wrong with the folder, and what to do."""
        again = "Run the same again: it goes on where it stopped."
        if not self._partial.is_dir():
            return StorageError(
                f"{str(self.path)!r} was removed while videos were being made. {again}"
            )
        reason = os.strerror(error.errno) if error.errno else str(error)
        return StorageError(
            f"{safe_stem(prompt)}.mp4 could not be written into {str(self.path)!r}: {reason}. "
            f"{'Free some space. ' if error.errno == errno.ENOSPC else ''}{again}"
        )

    def _entries(self) -> list[Entry]:
        """Return the videos that the manifest calls done; a file's entry counts once."""
        done = {(e.file, e.sha256): e for e in self.manifest.read() if e.status == DONE}
        return [e for e in done.values() if e.file and e.sha256 and Path(e.file).name == e.file]

    def _part_of(self, entry: Entry) -> Path:
        return self._partial / f"{entry.sha256}.mp4"

    def _name(self, part: Path, entry: Entry, *, is_new: bool = False) -> Path:
        """Give a whole file the first free name that suits its prompt, its entry before it."""
        # The processes of one run take names one after the other.
        with FileLock(self._partial / "names.lock"):
            for name in _names_for(entry.prompt):
                path = self.path / name
                if os.path.lexists(path):
                    continue
                if is_new or name != entry.file:
                    self.manifest.append(replace(entry, file=name))
                try:
                    _link(part, path)
                except FileExistsError:  # another program took it just now
                    continue
                part.unlink(missing_ok=True)
                _sync_folder(self.path)
                return path
        raise AssertionError("names ended")


def _names_for(prompt: str) -> Iterator[str]:
    stem = safe_stem(prompt)
    return (f"{stem}_{number}.mp4" if number else f"{stem}.mp4" for number in count())


def _link(part: Path, path: Path) -> None:
    """Make `part` stand under `path` too; FileExistsError if something stands there."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.open("xb").close()
        part.replace(path)


def _sync_folder(path: Path) -> None:
    """Have the names on the disk, where a folder can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
