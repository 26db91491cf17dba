"""The folder that a pack is written to: whether it may be, and whose it is."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.weights import read_json
from fastvideo_lightning.pack.files import partial_path
from fastvideo_lightning.pack.source import LOCK, RECORD

_OWN = {partial_path(Path(RECORD)).name, LOCK}
"""What a run that was stopped may leave of its own before there is a record."""


def check_target(folder: Path, out: Path) -> None:
    """Raise ValueError or FileExistsError unless `out` is new, empty or a pack's.

    RuntimeError where another process writes to it.
    """
    _check_place(out)
    source, target = folder.resolve(), out.resolve()
    if target == source or source in target.parents or target in source.parents:
        raise ValueError(
            f"Cannot pack {folder} into {out}: neither may be the other, or lie in it. "
            "Pass another folder to write to."
        )
    if (out / LOCK).is_file():
        _lock(out).release()
    if not out.is_dir() or (out / RECORD).is_file():
        return
    if {path.name for path in out.iterdir()} - _OWN:
        raise FileExistsError(f"The folder {out} holds what packing did not write. Pass a new one.")


def _check_place(out: Path) -> None:
    """Look at the folder, or at the nearest one above it that is there."""
    if "\0" in str(out):
        raise ValueError(f"OUT must be a folder, got {str(out)!r}. Leave the NUL out.")
    there = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not there.exists():
        raise FileExistsError(
            f"{there} is a symlink that leads nowhere. Delete it, or pass another folder."
        )
    if not there.is_dir():
        raise FileExistsError(f"There is a file {there}. Pass a folder to write to.")
    needed = os.W_OK | os.X_OK | (os.R_OK if there == out else 0)
    own = os.access in os.supports_effective_ids
    if not os.access(there, needed, effective_ids=own):
        raise PermissionError(
            f"You may not write to {there.absolute()}. Pass a folder that you may write to."
        )


@contextmanager
def naming_folder(out: Path) -> Iterator[None]:
    """Say what the system refuses in words that name the folder, and what to type."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # ours
            raise
        again = "Pass another folder."
        if error.errno == errno.ENOSPC:
            again = "Free some space and run the same command again."
        at = f" ({error.filename})" if error.filename else ""
        told = type(error)(f"Cannot write {out}: {error.strerror}{at}. {again}")
        told.errno = error.errno  # not as an argument: the message would begin with it
        raise told from error


def check_record(out: Path, record: Mapping[str, str]) -> None:
    """Raise FileExistsError where a folder holds a pack of something else than `record` says.

    Or where its own record cannot be read.
    """
    path = out / RECORD
    if not path.is_file():
        return
    try:
        there = read_json(path)
    except CheckpointError as error:
        reason = error.__cause__ or "it holds no JSON object"
        raise FileExistsError(
            f"{path} is damaged ({reason}), so it is not known what {out} is a pack of. Delete "
            f"{out}, or pass another folder."
        ) from error
    if there.get("fingerprint") != record["fingerprint"]:
        raise FileExistsError(
            f"The folder {out} holds a pack of {there.get('model')} with dtype "
            f"{there.get('dtype')}, made from other files or with other options than these. "
            "Delete it, or pass another folder."
        )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep other packs from a folder; the lock of a process that was killed holds nobody.

    Raises:
        RuntimeError: If another process writes to it.
    """
    lock = _lock(out)
    try:
        yield
    finally:
        # While it is held: whoever opened the file before finds it gone, and takes a new one.
        # Windows removes no file that is open, and the lock's own release does.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _lock(out: Path) -> FileLock:
    lock = FileLock(out / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another `fastvideo-lightning pack` is writing to {out}. Wait for it to end, or pass "
            "another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise OSError(
            f"{out} cannot be locked ({getattr(error, 'strerror', None) or error}), and pack locks "
            "its folder so that no second one writes there. Mount it with locks (NFS: lockd, or "
            "the option local_lock=all on one machine), or pass a folder on another disk."
        ) from error
    return lock


def free_bytes(out: Path, missing: Iterable[Path]) -> int:
    """What is free on the disk of `out` once the partials of `missing` files are written anew."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    partials = (partial_path(out / path) for path in missing)
    freed = sum(path.stat().st_size for path in partials if path.is_file())
    return shutil.disk_usage(there).free + freed
