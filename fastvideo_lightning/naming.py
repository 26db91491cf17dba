"""Names of files: what a prompt's may be called, and how a finished file gets a free one.

A name is given to a file that is whole, in one step that takes no name which is taken: so a process
that is killed leaves no empty file, and two processes never get the same name.
"""

import errno
import os
import unicodedata
from collections.abc import Iterator
from itertools import count
from pathlib import Path

MAX_STEM_BYTES = 120  # encrypted file systems stop at 143, and the temporary name needs room too
_RESERVED = {"con", "prn", "aux", "nul", "conin", "conout"}
_RESERVED |= {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
# What a file system without hard links answers.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def safe_stem(prompt: str) -> str:
    """Return a file stem for the prompt that every file system takes.

    Letters, digits and hyphens stay, in any script; every run of anything else becomes one
    underscore. At most `MAX_STEM_BYTES` bytes of UTF-8, never empty, never a name that Windows
    reserves (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
    """
    text = unicodedata.normalize("NFKC", prompt)
    kept = (c if unicodedata.category(c)[0] in "LMN" or c == "-" else " " for c in text)
    words = "".join(kept).split()
    stem = "_".join(words).encode()[:MAX_STEM_BYTES].decode(errors="ignore").strip("_-")
    if not stem:
        return "video"
    return f"video_{stem}" if stem.lower() in _RESERVED else stem


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
        if error.errno not in _NO_LINKS:
            raise
        path.open("xb").close()
        part.replace(path)
