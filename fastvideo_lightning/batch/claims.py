"""Who makes which prompt, and what became of it: files that are made exclusively.

# Note [Claims]
A prompt is known by its key: what makes its video this one, and which of several equal ones it is.
A claim is the file `claims/KEY.0`, which holds its worker's name. Where that worker is gone, or
where the claim had ended without a video when this run began, the next claim is `KEY.1`, and so on:
no claim is ever taken back, so nobody takes back another's by mistake. A video's record is
`done/KEY`, so there is one of each; a claim without a video has `ended/KEY.0`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from fastvideo_lightning.batch.manifest import Entry, parse_entry
from fastvideo_lightning.batch.session import Session, list_names, read_object


@dataclass(frozen=True)
class Record:
    """What a worker publishes of a prompt.

    Attributes:
        index: Of the prompt in its worker's list.
        entry: Its line of the manifest; None of a video that was there and is no more.
        part: The video's name in its worker's folder.
    """

    index: int
    entry: Entry | None
    part: str = ""

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """Read one; None where there is none, or one that a kill cut short."""
        content = read_object(path)
        if content is None or not isinstance(content.get("index"), int):
            return None
        return cls(content["index"], parse_entry(content["entry"]), str(content["part"]))

    def to_bytes(self) -> bytes:
        """As JSON."""
        entry = None if self.entry is None else asdict(self.entry)
        content = {"index": self.index, "part": self.part, "entry": entry}
        return json.dumps(content, default=repr).encode()


class Claims:
    """The prompts of a list among the workers of a session; see Note [Claims].

    Args:
        session: The workers.
        entries: Of each prompt, by its index.
    """

    def __init__(self, session: Session, entries: Mapping[int, Entry]) -> None:
        self._session = session
        count: Counter[str] = Counter()
        self.keys: dict[int, str] = {}
        for index, entry in entries.items():
            identity = entry.identity
            key = f"{sha256(identity.encode()).hexdigest()[:40]}-{count[identity]}"
            self.keys[index] = key
            count[identity] += 1
        self._numbers: Counter[str] = Counter()  # of the last claim, by key
        self._before: set[str] = set()
        self._done: dict[str, Record] = {}
        self._ended: dict[str, Record] = {}

    def begin(self) -> None:
        """Take what ended without a video until now as worth another try."""
        self._numbers.clear()
        self._done.clear()
        self._ended.clear()
        self._before = set(list_names(self._session.place("ended")))

    def claim(self, index: int) -> bool:
        """Take a prompt; False where it is another's, or settled. What is claimed stays claimed.

        Raises:
            Fenced: If this worker was taken for dead.
        """
        key = self.keys[index]
        while not self.is_settled(index):
            path = self._path("claims", key)
            if self._session.publish(self._session.home / "name", path):
                if not self._has_ended(key):
                    return not self.is_settled(index)  # another may have published meanwhile
            elif not self._is_free(key):
                return False
            self._numbers[key] += 1
        return False

    def is_free(self, index: int) -> bool:
        """Whether a prompt can be claimed, as far as one can see."""
        return not self.is_settled(index) and self._is_free(self.keys[index])

    def is_settled(self, index: int) -> bool:
        """Whether nothing is to be done for a prompt: it is made, or failed in this run."""
        return self.done(index) is not None or self.failure(index) is not None

    def done(self, index: int) -> Record | None:
        """The record of a prompt's video, or None."""
        key = self.keys[index]
        if key not in self._done:
            record = Record.read(self._session.place("done") / key)
            if record is None or record.entry is None:
                return None
            self._done[key] = record
        return self._done[key]

    def failure(self, index: int) -> Record | None:
        """The record of a prompt whose last try in this run failed, or None."""
        self._advance(self.keys[index])
        name = self._path("ended", self.keys[index]).name
        if name in self._before:
            return None
        if name not in self._ended:
            record = Record.read(self._session.place("ended") / name)
            if record is None:
                return None
            self._ended[name] = record
        return self._ended[name] if self._ended[name].entry is not None else None

    def holder(self, index: int) -> str:
        """Name of the worker that has a prompt in work; empty where none has."""
        key = self.keys[index]
        return "" if self.is_settled(index) or self._is_free(key) else self._read_holder(key)

    def end(self, index: int, entry: Entry | None) -> None:
        """Publish that the last claim of a prompt ended without a video.

        Raises:
            Fenced: If this worker was taken for dead.
            OSError: If it cannot be written.
        """
        path = self._path("ended", self.keys[index])
        record = self._session.write(path.name, Record(index, entry).to_bytes())
        try:
            self._session.publish(record, path)
        finally:
            record.unlink(missing_ok=True)

    def void(self, index: int) -> None:
        """Have a prompt made again whose video is there no more."""
        key = self.keys[index]
        self._advance(key)
        self.end(index, None)
        self._done.pop(key, None)
        (self._session.place("done") / key).unlink(missing_ok=True)

    def records(self) -> "Iterable[Record]":
        """All that was published, in the order of the list and of the tries."""
        for part, known in (("done", self._done), ("ended", self._ended)):
            folder = self._session.place(part)
            for name in list_names(folder):
                if name not in known and (record := Record.read(folder / name)) is not None:
                    known[name] = record
        ended = sorted(self._ended.items(), key=lambda named: int(named[0].rpartition(".")[2]))
        found = [*(record for _, record in ended), *self._done.values()]
        return sorted(found, key=lambda record: record.index)

    def _path(self, part: str, key: str) -> Path:
        return self._session.place(part) / f"{key}.{self._numbers[key]}"

    def _advance(self, key: str) -> None:
        """Know the last claim of a prompt."""
        claims = self._session.place("claims")
        while (claims / f"{key}.{self._numbers[key] + 1}").exists():
            self._numbers[key] += 1

    def _has_ended(self, key: str) -> bool:
        return self._path("ended", key).exists()

    def _is_free(self, key: str) -> bool:
        """Whether nobody holds the last claim of a prompt that is not settled."""
        self._advance(key)
        return self._has_ended(key) or not self._session.is_there(self._read_holder(key))

    def _read_holder(self, key: str) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return self._path("claims", key).read_text()
        return ""
