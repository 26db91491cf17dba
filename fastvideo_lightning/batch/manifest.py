"""The manifest of an output folder: what was made there, one line of JSON each."""

import hashlib
import json
import logging
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastvideo_lightning.output.files import sync_folder

MANIFEST = "manifest.jsonl"
DONE, FAILED = "done", "failed"
# What is read of an entry, so that a line which somebody has changed is no entry, or a right one.
_KINDS = {
    "prompt": str,
    "file": str | None,
    "sha256": str | None,
    "name": str | None,
    "parameters": dict,
    "inputs": dict,
    "settings": dict,
}

_MEDIA = ("image_path", "last_image_path", "video_path")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One video that was made, or could not be.

    Attributes:
        prompt: The text.
        seed: Of its noise.
        status: `done` or `failed`.
        file: The video's name in the folder, or None.
        sha256: Of the file, or None.
        parameters: Every sampling parameter, the defaults among them, the components' dtypes and
            whatever else makes it another video.
        inputs: Of what goes in, by name, what tells its content from others: the model's parts,
            adapters, pictures and videos.
        settings: How it was computed, where that only changes what nobody chose it for: rounding,
            and tiles.
        model: What it was made with.
        versions: Of this package and of the libraries that settle the pixels.
        time: `finished`, in ISO 8601, and `generation_s`, prompt to frames.
        memory: `peak_gpu_gib` and `peak_host_gib`; None where it is not known.
        error: Why it failed, or None.
        name: What its file was to be called, where not by its prompt alone: no part of what it is.
        worker: Who made it: machine and process.
    """

    prompt: str
    seed: int
    status: str
    file: str | None = None
    sha256: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    time: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, float | None] = field(default_factory=dict)
    error: str | None = None
    name: str | None = None
    worker: str = ""

    @property
    def identity(self) -> str:
        """What makes it this video and no other: inputs, prompt, seed and parameters."""
        return json.dumps([self.inputs, *self._asked], sort_keys=True, default=repr)

    @property
    def request(self) -> str:
        """What was asked for, without what went in: the same for another model or picture."""
        return json.dumps(self._asked, sort_keys=True, default=repr)

    def to_line(self) -> bytes:
        """Its line of the manifest, without the end."""
        return json.dumps(asdict(self), ensure_ascii=False, default=repr).encode()

    @property
    def _asked(self) -> list[Any]:
        """Names of what goes in are left out: their content counts, see `inputs`."""
        named = {"loras", "pipeline_arguments", *_MEDIA}
        kept = {name: value for name, value in self.parameters.items() if name not in named}
        return [self.prompt, self.seed, kept]


class Manifest:
    """The file `manifest.jsonl`: read as it is, and replaced as a whole.

    So it is never half written, and who reads it while it is replaced reads the one before.

    Args:
        folder: The output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MANIFEST

    def check(self) -> None:
        """Raise OSError if it is there and cannot be read and appended to."""
        with suppress(FileNotFoundError):
            os.close(self._open(os.O_RDWR | os.O_APPEND))

    def read(self, *, quiet: bool = False) -> list[Entry]:
        """Return the entries; a line that is none is passed over, and told of unless it is torn."""
        lines = self._read_lines()
        entries = [
            (number, parse_entry(line)) for number, line in enumerate(lines, 1) if line.strip()
        ]
        for number, entry in entries:
            if entry is None and number != len(lines) and not quiet:
                _log.warning(
                    "%s, line %d is no entry and is passed over: its video counts as not made.",
                    self.path,
                    number,
                )
        return [entry for _, entry in entries if entry is not None]

    def read_lines(self) -> list[bytes]:
        """Return its lines as they are, but for empty ones and a last one that is torn."""
        *lines, last = self._read_lines() or [b""]
        if parse_entry(last) is not None:
            lines.append(last)
        return [line for line in lines if line.strip()]

    def replace(self, new: Path) -> None:
        """Put a file in its place, in one step.

        Args:
            new: What it is from now on, synced; of the same file system.

        Raises:
            OSError: If it cannot be; what stands there stays.
        """
        self._check_place()
        new.replace(self.path)
        sync_folder(self.folder)

    def _read_lines(self) -> list[bytes]:
        try:
            content = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return []
        with os.fdopen(content, "rb") as file:
            return file.read().split(b"\n")

    def _check_place(self) -> None:
        """Raise OSError where something stands in its place that is no file."""
        if self.path.is_symlink():
            raise OSError(
                f"{str(self.path)!r} is a symlink, and nothing is written through one. Remove it, "
                "or pass another output_path."
            )
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait forever
            raise OSError(
                f"{str(self.path)!r} is no file, and the manifest of the folder belongs there. "
                "Move it away, or pass another output_path."
            )

    def _open(self, flags: int) -> int:
        """Open the file itself, never what a symlink in its place points to."""
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._check_place()
        try:
            return os.open(self.path, flags, 0o666)
        except PermissionError as error:
            raise PermissionError(
                f"{str(self.path)!r} cannot be read and written: {error.strerror}. Allow both, or "
                "pass another output_path."
            ) from error


def sha256_of(path: Path) -> str | None:
    """Return the hash of a regular file's bytes, or None where there is no such file."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def parse_entry(line: bytes | dict[str, Any] | None) -> Entry | None:
    """Return the entry that a line of the manifest holds, or an object of JSON; else None."""
    known = {field.name for field in fields(Entry)}
    try:
        values: Any = json.loads(line) if isinstance(line, bytes) else line
        entry = Entry(**{name: value for name, value in values.items() if name in known})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    is_one = entry.status in (DONE, FAILED) and all(
        isinstance(getattr(entry, name), kind) for name, kind in _KINDS.items()
    )
    return entry if is_one else None
