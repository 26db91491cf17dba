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
# Letters without a shape; and marks without one, which choose a shape of the character before.
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")
_SELECTORS = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
_BLANK_MARKS = frozenset("\u034f\u17b4\u17b5") | {chr(c) for each in _SELECTORS for c in each}
# What a file system without hard links answers.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def safe_stem(prompt: str) -> str:
    """Return a file stem for the prompt that every file system takes.

    Letters, digits and hyphens stay, in any script, a letter with the marks that belong to it;
    every run of anything else becomes one underscore. At most `MAX_STEM_BYTES` bytes of UTF-8,
    never empty, never a name that Windows reserves
    (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
    """
    text = unicodedata.normalize("NFKC", prompt)
    words = "".join(_seen(text)).split()
    stem = "_".join(words).encode()[:MAX_STEM_BYTES].decode(errors="ignore").strip("_-")
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
        if error.errno not in _NO_LINKS:
            raise
        path.open("xb").close()
        part.replace(path)
