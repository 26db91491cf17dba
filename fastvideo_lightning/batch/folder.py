"""The output folder of a batch: one run at a time, and a name for each video once it is whole.

# Note [Never lost, never twice]
A video is encoded under a temporary name in `.partial/` and synced; its entry is appended to the
manifest and synced; only then does it get its name, by a hard link, which takes no name that is
taken. A process killed before the entry has made nothing, and what it left in `.partial/` goes. One
killed after it has left a whole file there whose hash the entry holds, and the next run gives that
file its name. Were the name given before the entry, a kill in between would leave a video that no
entry knows of, and it would be made twice.

The link in `.partial/` goes only after the video was told of: when the next one is kept, or the
run ends. So the next run knows of which videos a killed one may not have told, and tells of them.
"""

import errno
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from fastvideo_lightning.batch.manifest import DONE, Entry, Manifest, sha256_of
from fastvideo_lightning.output.files import (
    check_output_folder,
    link,
    names_for,
    safe_stem,
    sync_folder,
)
from fastvideo_lightning.output.video import GeneratedVideo

_LATE_S = 5.0

_LOCK, _PARTIAL, _NAMES = ".fastvideo-lightning.lock", ".partial", "names.lock"


class StorageError(OSError):
    """The output folder takes no more: whatever is made next could not be written either."""


class BatchFolder:
    """Where a batch writes.

    Args:
        path: The folder; it is made if need be.
        suffix: What its files end in: `.mp4`, or `.png` for pictures.

    Attributes:
        recovered: Files that a killed run finished and may not have told of; known once it is open.

    Raises:
        ValueError, OSError: As `check_output_folder`.
        StorageError: If a symlink, or something of another kind, stands where the folder keeps its
            own files.
        OSError: If its manifest cannot be read and written.
    """

    def __init__(self, path: str | os.PathLike[str], *, suffix: str = ".mp4") -> None:
        self.path = check_output_folder(path)
        self.recovered: list[Path] = []
        self._suffix = suffix
        self._num_before = 0
        self._untold: list[Path] = []
        self.manifest = Manifest(self.path)
        self._partial = self.path / _PARTIAL
        self._lock = FileLock(self.path / _LOCK, thread_local=False)
        for own in (self.manifest.path, self._partial, self.path / _LOCK):
            if own.is_symlink():
                raise StorageError(
                    f"{str(own)!r} is a symlink, and nothing is written through one. Remove it, or "
                    "pass another output_path."
                )
        self.manifest.check()
        for own, kind, is_right in (
            (self._partial, "folder", self._partial.is_dir()),
            (self.path / _LOCK, "file", (self.path / _LOCK).is_file()),
        ):
            if own.exists() and not is_right:
                raise StorageError(
                    f"{str(own)!r} is no {kind}, and a batch needs it as one. Move it away, or "
                    "pass another output_path."
                )

    def open(self) -> dict[str, list[Entry]]:
        """Lock the folder, give whole videos of a killed run their names, and remove its rest.

        Returns:
            The entries of the videos that are there whole, by what makes each this video.

        Raises:
            RuntimeError: If another process has locked it.
            StorageError: If it cannot be locked, as where a network's file system has no locks.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"Another batch is being written into {str(self.path)!r}. Wait until it has ended, "
                "or pass another output_path."
            ) from None
        except (OSError, NotImplementedError) as error:
            raise StorageError(
                f"{str(self.path)!r} cannot be locked ({_reason(error)}), and a batch locks its "
                "folder so that no second one writes there. Mount it with locks (NFS: lockd, or "
                "the option local_lock=all on one machine), or pass an output_path on another disk."
            ) from error
        self._partial.mkdir(exist_ok=True)
        done: dict[str, list[Entry]] = {}
        for entry in self._entries():
            path, part = self.path / str(entry.file), self._part_of(entry)
            if sha256_of(path) == entry.sha256:
                if part.exists():
                    self.recovered.append(path)
                    self._untold.append(part)
            elif sha256_of(part) == entry.sha256:
                self.recovered.append(self._name(part, entry))
            else:
                continue
            done.setdefault(entry.identity, []).append(entry)
        for left in self._partial.iterdir():
            if left not in self._untold and not left.is_dir():  # a folder is somebody else's
                left.unlink()
        self._num_before = len(self.manifest.read(quiet=True))
        return done

    def make_mark(self) -> str:
        """Put a file there by which other processes can tell that they see this folder."""
        mark = f"mark-{uuid4().hex}"
        (self._partial / mark).touch()
        return mark

    def sees(self, mark: str) -> bool:
        """Whether a mark is there; a network's file system may show it some seconds late."""
        end = time.monotonic() + _LATE_S
        while not (is_there := mark in _list(self._partial)) and time.monotonic() < end:
            time.sleep(0.1)
        return is_there

    def remove_mark(self, mark: str) -> None:
        """Take it away, when all have looked."""
        (self._partial / mark).unlink(missing_ok=True)

    def num_made(self) -> int:
        """Count the videos of this run that are there, whichever of its processes made them."""
        made = self.manifest.read(quiet=True)[self._num_before :]
        files = {entry.file for entry in made if entry.status == DONE and entry.file}
        return sum((self.path / file).is_file() for file in files)

    def close(self) -> None:
        """Let the next batch have the folder; a second call does nothing.

        What cannot be removed, as where the folder takes no more, stays for the next batch.
        """
        with suppress(OSError):
            self.forget()
        if self._lock.is_locked:
            names = self._partial / _NAMES
            with suppress(OSError):
                if self._partial.is_dir() and set(self._partial.iterdir()) <= {names}:
                    names.unlink(missing_ok=True)
                    self._partial.rmdir()
            # While it is held: whoever opened the file before finds it gone, and takes a new one.
            # Windows removes no file that is open, and the lock's own release does.
            with suppress(OSError):
                os.unlink(self._lock.lock_file)
            self._lock.release()

    def keep(self, video: GeneratedVideo, entry: Entry) -> Path:
        """Write a video and its entry, and return its path. See Note [Never lost, never twice].

        Raises:
            StorageError: If the folder does not take it.
        """
        part = self._partial / f"{uuid4().hex}{self._suffix}"
        try:
            self.forget()
            video.save(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            entry = replace(entry, status=DONE, sha256=sha256_of(part))
            return self._name(part, entry)
        except OSError as error:
            for left in (part, self._partial / f"{entry.sha256}{self._suffix}"):
                with suppress(OSError):
                    left.unlink(missing_ok=True)
            raise self.explain(error, entry.name or entry.prompt) from error

    def forget(self) -> None:
        """Take it that all videos that were kept or recovered so far were told of."""
        untold, self._untold = self._untold, []
        if untold and self._partial.is_dir():
            with self._naming():
                for part in untold:
                    part.unlink(missing_ok=True)

    def explain(self, error: OSError, prompt: str) -> StorageError:
        """Say what is wrong with the folder, and what to do."""
        again = "Run the same again: it goes on where it stopped."
        if not self._partial.is_dir():
            return StorageError(
                f"{str(self.path)!r} was removed while videos were being made. {again}"
            )
        reason = _reason(error)
        name = f"{safe_stem(prompt)}{self._suffix}"
        return StorageError(
            f"{name} could not be written into {str(self.path)!r}: {reason}. "
            f"{'Free some space. ' if error.errno == errno.ENOSPC else ''}{again}"
        )

    def _entries(self) -> list[Entry]:
        """Return the videos that the manifest calls done; a file's entry counts once."""
        done = {(e.file, e.sha256): e for e in self.manifest.read() if e.status == DONE}
        return [e for e in done.values() if e.file and e.sha256 and Path(e.file).name == e.file]

    def _part_of(self, entry: Entry) -> Path:
        return self._partial / f"{entry.sha256}{Path(str(entry.file)).suffix}"

    def _naming(self) -> FileLock:
        """The processes of one run take names one after the other."""
        return FileLock(self._partial / _NAMES)

    def _name(self, part: Path, entry: Entry) -> Path:
        """Give a whole file the first free name that suits it, its entry before it."""
        with self._naming():
            part = part.replace(self._partial / f"{entry.sha256}{part.suffix}")
            for name in names_for(entry.name or entry.prompt, part.suffix):
                path = self.path / name
                if os.path.lexists(path):
                    continue
                if name != entry.file:
                    self.manifest.append(replace(entry, file=name))
                try:
                    link(part, path)
                except FileExistsError:  # another program took it just now
                    continue
                self._untold.append(part)
                sync_folder(self.path)
                return path
        raise AssertionError("names ended")


def _reason(error: Exception) -> str:
    """Return what the system says of an error, without its number."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)


def _list(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    with suppress(OSError):
        return os.listdir(folder)
    return []
