"""Files of a run: free names, written whole or not at all, one behind what is made next."""

import errno
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Thread
from typing import BinaryIO
from uuid import uuid4

MAX_STEM_BYTES = 120  # encrypted file systems stop at 143, and the temporary name needs room too
_RESERVED = {"con", "prn", "aux", "nul", "conin", "conout"}
_RESERVED |= {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
# Letters without a shape; and marks without one, which choose a shape of the character before.
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")
_SELECTORS = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
_BLANK_MARKS = frozenset("\u034f\u17b4\u17b5") | {chr(c) for each in _SELECTORS for c in each}
# What a file system without hard links answers.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def safe_stem(prompt: str, *, max_bytes: int = MAX_STEM_BYTES) -> str:
    """Return a file stem for the prompt that every file system takes.

    Letters, digits and hyphens stay, in any script, a letter with the marks that belong to it;
    every run of anything else becomes one underscore. At most `max_bytes` bytes of UTF-8,
    never empty, never a name that Windows reserves
    (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
    """
    text = unicodedata.normalize("NFKC", prompt)
    words = "".join(_seen(text)).split()
    stem = "_".join(words).encode()[:max_bytes].decode(errors="ignore").strip("_-")
    if not stem:
        return "video"
    return f"video_{stem}" if stem.lower() in _RESERVED else stem


def _seen(text: str) -> Iterator[str]:
    """Give each character that stays, and a space for each that does not.

    A mark goes with the character that it belongs to: alone, many cannot be seen. So do letters
    that are blank, as the fillers of Hangul are.
    """
    carries = False
    for character in text:
        kind = unicodedata.category(character)[0]
        if kind != "M":
            carries = kind in "LN" and character not in _BLANK_LETTERS
        if character == "-" or (carries and character not in _BLANK_MARKS):
            yield character
        elif not carries:
            yield " "


def names_for(prompt: str, suffix: str) -> Iterator[str]:
    """Give `<prompt><suffix>`, then `<prompt>_1<suffix>` and so on without end."""
    stem = safe_stem(prompt)
    return (f"{stem}_{number}{suffix}" if number else f"{stem}{suffix}" for number in count())


def give_name(part: Path, prompt: str) -> Path:
    """Move a finished file to the first name beside it that suits the prompt and is free.

    Args:
        part: The file; what it ends in, its new name ends in.
        prompt: What it is named by.

    Returns:
        The path that it has now.
    """
    for name in names_for(prompt, part.suffix):
        path = part.with_name(name)
        if os.path.lexists(path):
            continue
        try:
            link(part, path)
        except FileExistsError:  # another program took it just now
            continue
        part.unlink(missing_ok=True)
        return path
    raise AssertionError("names ended")


def link(part: Path, path: Path) -> None:
    """Make `part` stand under `path` too; FileExistsError if something stands there.

    Where a file system has no hard links, `part` is moved.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        path.open("xb").close()
        part.replace(path)


_MEDIA_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg"}


def check_output_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder if need be and prove that files can be written there.

    Raises:
        TypeError: If `folder` is no path.
        ValueError: If `folder` is empty or names a media file.
        OSError: If it cannot be made or written to; the class says which.
    """
    text = os.fspath(folder) if isinstance(folder, os.PathLike) else folder
    if not isinstance(text, str):
        raise TypeError(
            f"output_path must be a folder, got {folder!r}. Pass one such as output_path='output/'."
        )
    if not text or "\0" in text:
        raise ValueError(
            f"output_path must be a folder, got {text!r}. Pass one such as output_path='output/'."
        )
    path = Path(os.path.expanduser(text))
    if path.suffix.lower() in _MEDIA_SUFFIXES and not path.is_dir():
        raise ValueError(
            f"output_path must be a folder, got the file name {text!r}. "
            f"Pass the folder: output_path={str(path.parent)!r}; the file is named by the prompt."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError):
            what = "a link to nothing" if path.is_symlink() else "a file"
            reason, error = f"{what} is in its place", NotADirectoryError()
        raise type(error)(
            f"output_path {text!r} cannot be written to: {reason}. "
            "Pass a folder that you may write to, such as output_path='output/'."
        ) from error
    return path


@contextmanager
def whole_or_nothing(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it becomes `path`, on failure it goes.

    Args:
        path: The file.
        part: The temporary name; by default one that no other has.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}. "
            "Make it first."
        )
    part = part or path.with_name(f".{uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what is told
            part.unlink(missing_ok=True)
        raise


def sync(file: BinaryIO) -> None:
    """Have what was written to a file on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; only POSIX opens folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class WriteBehind:
    """Runs one write at a time on a thread beside the caller's.

    A second write waits for the first, so that at most one thing that was made is held here, and
    writes keep their order. What a write raises is raised by the next call.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def put(self, write: Callable[[], None], announce: Callable[[str], None]) -> None:
        """Finish the write before, then begin this one.

        Args:
            write: Run on the thread.
            announce: Told `on_write_start` now, and from the thread `on_write_end` however it ends.
        """
        self.finish()
        announce("on_write_start")
        self._thread = Thread(target=self._run, args=(write, announce), name="write-behind")
        self._thread.start()

    def finish(self) -> None:
        """Wait until nothing is being written; raises what the write raised."""
        if self._thread is not None:
            self._thread.join()  # a Ctrl-C that comes here leaves it to the next call
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[], None], announce: Callable[[str], None]) -> None:
        try:
            try:
                write()
            finally:
                announce("on_write_end")
        except BaseException as error:
            self._error = error
