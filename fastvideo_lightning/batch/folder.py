"""The output folder of a batch: any number of workers, and a name for each video once it is whole.

# Note [Never lost, never twice]
A video is written into its worker's folder and synced; then its record, beside it; then the record
is linked to `done/KEY`, which takes no name that is taken. There it is published: who was asleep
and made it a second time finds that, and drops his. Only then does the video get its name, by a
hard link too. A worker killed before it wrote the record has made nothing. Of one killed later,
whoever finds it dead publishes the record and gives the video its name.

Names are dealt over the whole list when a session begins, into a file that is made exclusively, so
that who makes what changes none.

A record and its video leave the worker's folder only after the video was told of: when the next
one is kept, or the run ends. So whoever finds a worker dead knows which videos it may not have told
of, and tells of them.

The manifest is what stood in it when the session began, then what the session's workers have
published, in the order of the list. Each worker puts all of that in its place in one step, from its
own folder: so one that was taken for dead changes nothing there either. What a slow one replaces
with less is put right by the next one that does so, and by itself: it looks again before it leaves.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import RLock
from uuid import uuid4

from fastvideo_lightning.batch.claims import Claims, Record
from fastvideo_lightning.batch.manifest import DONE, Entry, Manifest, parse_entry, sha256_of
from fastvideo_lightning.batch.session import (
    STALE_S,
    Fenced,
    Session,
    create,
    list_names,
    read_object,
)
from fastvideo_lightning.output.files import (
    check_output_folder,
    link,
    names_for,
    safe_stem,
    sync_folder,
)
from fastvideo_lightning.output.video import GeneratedVideo

OWN, NOW = ".batch", "now"
_LATE_S = 5.0
_REFRESH = 20  # times what it takes to write the manifest pass before it is written again


class StorageError(OSError):
    """The output folder takes no more: whatever is made next could not be written either."""


class BatchFolder:
    """Where a batch writes, beside other workers.

    Args:
        path: The folder; it is made if need be.
        suffix: What its files end in: `.mp4`, or `.png` for pictures.
        stale_s: After how many seconds without a sign of life a worker is taken for dead.

    Attributes:
        recovered: Files that a killed worker finished and may not have told of; known once it is
            open.
        on_recovered: Called with the path of each that is found later.
        unused: Once it is open, entries of videos that are there and that nobody asked for.

    Raises:
        ValueError, OSError: As `check_output_folder`.
        StorageError: If a symlink, or something of another kind, stands where the folder keeps its
            own files.
        OSError: If its manifest cannot be read and written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, suffix: str = ".mp4", stale_s: float = STALE_S
    ) -> None:
        self.path = check_output_folder(path)
        self.recovered: list[Path] = []
        self.on_recovered: Callable[[Path], None] = lambda path: None
        self.unused: list[Entry] = []
        self._suffix = suffix
        self._poll_s = min(1.0, stale_s / 10)
        self.manifest = Manifest(self.path)
        own = self.path / OWN
        for each in (self.manifest.path, own):
            if each.is_symlink():
                raise StorageError(
                    f"{str(each)!r} is a symlink, and nothing is written through one. Remove it, "
                    "or pass another output_path."
                )
        self.manifest.check()
        if own.exists() and not own.is_dir():
            raise StorageError(
                f"{str(own)!r} is no folder, and a batch needs it as one. Move it away, or "
                "pass another output_path."
            )
        self._session = Session(own, stale_s=stale_s)
        self._is_open = False
        self._entries: dict[int, Entry] = {}
        self._claims = Claims(self._session, {})
        self._there: dict[int, Entry] = {}
        self._names: dict[int, str] = {}
        self._wanted: dict[int, str] = {}
        self._claimed_as: dict[int, str] = {}
        self._is_resumed = True
        self._before: set[tuple[str | None, str | None]] | None = None
        self._lock = RLock()
        self._base: list[bytes] = []
        self._untold: list[tuple[Path, Path]] = []
        self._num_done = 0
        self._refreshed, self._refresh_s, self._content = 0.0, 0.0, b""

    def open(
        self,
        entries: Mapping[int, Entry],
        *,
        wanted: Mapping[int, str] | None = None,
        resume: bool = True,
    ) -> dict[int, Entry]:
        """Join the workers of the folder, and finish what a killed one has made.

        Args:
            entries: Of the prompts to make, by their index in the list.
            wanted: After what the videos of the whole list are named, where `entries` has a part.
            resume: Leave out what was made before; else only what is made from now on counts.

        Returns:
            The entries of the videos that are there whole, by the index of the prompt.

        Raises:
            StorageError: If the folder does not take the workers' own files.
        """
        self._entries = dict(entries)
        self._wanted = dict(wanted or {i: e.name or e.prompt for i, e in entries.items()})
        self._claims = Claims(self._session, self._entries)
        self._is_open = True
        self._is_resumed = resume
        with self._explained(), self._lock:
            if not resume:
                with suppress(Fenced):
                    self._join()
                    if not self._session.others():  # what a killed run has begun is begun anew
                        self._refresh(always=True)
            self._begin()
        return dict(self._there)

    @property
    def worker(self) -> str:
        """What this worker is known by among those of the folder."""
        return self._session.worker

    def enter(self, worker: str, entries: Mapping[int, Entry], names: Mapping[int, str]) -> None:
        """Write as a further process of a worker; of the one that has joined it is nothing new.

        Args:
            worker: What it is known by.
            entries: As of `open`.
            names: What the videos will be called.
        """
        if self._is_open:
            return
        self._session.enter(worker)
        self._names = dict(names)
        if not self._entries:
            self._entries = dict(entries)
            self._claims = Claims(self._session, self._entries)

    @property
    def names(self) -> dict[int, str]:
        """What the videos that are to be made will be called, by the index of the prompt."""
        return dict(self._names)

    def claim(self, index: int) -> bool:
        """Take a prompt for this worker; False where it is another's, or made, or has failed.

        Raises:
            StorageError: If the folder does not take the claim.
        """
        with self._explained(), self._lock:
            while True:
                try:
                    is_claimed = not self.is_settled(index) and self._claims.claim(index)
                    self._claimed_as[index] = self._session.worker
                    if is_claimed:
                        with suppress(OSError):  # for those who ask how the batch stands
                            (self._session.home / NOW).write_text(self._names.get(index, ""))
                    return is_claimed
                except Fenced:
                    self._begin()

    def is_settled(self, index: int) -> bool:
        """Whether nothing is to be done for a prompt: its video is there, or failed in this run."""
        return index in self._there or self._claims.is_settled(index)

    def is_free(self, index: int) -> bool:
        """Whether a prompt can be claimed, as far as one can see."""
        return index not in self._there and self._claims.is_free(index)

    def wait(self, indexes: Iterable[int], *, at_most_s: float = float("inf")) -> list[int]:
        """Wait until some prompt is free to be claimed, or none is left to be made.

        Returns:
            Those that are not settled: none where all is done.
        """
        until = time.monotonic() + at_most_s
        left = list(indexes)
        while True:
            with self._explained(), self._lock:
                if not self._session.is_member:
                    self._begin()
                self._recover()
                left = [index for index in left if not self.is_settled(index)]
                if not left or any(map(self._claims.is_free, left)) or time.monotonic() >= until:
                    return left
            time.sleep(self._poll_s)

    def failures(self) -> dict[int, Entry]:
        """The prompts that failed in this run, whichever worker tried, by their index."""
        left = (i for i in self._entries if i not in self._there and not self._claims.done(i))
        found = {index: self._claims.failure(index) for index in left}
        return {i: record.entry for i, record in found.items() if record and record.entry}

    def num_done(self) -> int:
        """Count the videos of the list that are there, whoever made them."""
        if self._session.is_member:
            made = (i for i in self._entries if i not in self._there and self._claims.done(i))
            self._num_done = len(self._there) + sum(1 for _ in made)
        return self._num_done

    def make_mark(self) -> str:
        """Put a file there by which other processes can tell that they see this folder."""
        mark = f"mark-{uuid4().hex}"
        (self._session.home / mark).touch()
        return mark

    def sees(self, mark: str) -> bool:
        """Whether a mark is there; a network's file system may show it some seconds late."""
        end = time.monotonic() + _LATE_S
        while not (is_there := mark in list_names(self._session.home)) and time.monotonic() < end:
            time.sleep(0.1)
        return is_there

    def remove_mark(self, mark: str) -> None:
        """Take it away, when all have looked."""
        (self._session.home / mark).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the folder to the other workers; a second call does nothing.

        What cannot be removed, as where the folder takes no more, stays for the next batch.
        """
        if not self._is_open:
            return
        with self._lock:
            with suppress(OSError):
                self.num_done()
            with suppress(OSError):
                self.forget()
            with suppress(OSError):
                self._recover()
            with suppress(OSError, Fenced):
                self._refresh(always=True)
            self._is_open = False
            self._session.leave()

    def keep(self, video: GeneratedVideo, entry: Entry, index: int) -> Path | None:
        """Write a video and its record; see Note [Never lost, never twice].

        Returns:
            Its path, or None where another worker was faster, because this one was asleep.

        Raises:
            StorageError: If the folder does not take it.
        """
        # Its claim counts for nothing where this worker was taken for dead since, and came back.
        worker = self._claimed_as.get(index, self._session.worker)
        part = self._session.home / f"{uuid4().hex}{self._suffix}"
        try:
            self.forget()
            video.save(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            entry = replace(entry, status=DONE, sha256=sha256_of(part), worker=self._session.name)
            with self._lock:
                if worker != self._session.worker:
                    raise Fenced
                named = replace(entry, file=self._free_name(index, entry))
                path = self._publish(part, Record(index, named, part.name))
                self._refresh()
                return path
        except (OSError, Fenced) as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            if self._was_fenced(worker):
                return None
            raise self.explain(error, entry.name or entry.prompt) from error

    def fail(self, entry: Entry, index: int) -> None:
        """Note a prompt that failed.

        Raises:
            StorageError: If the folder does not take it.
        """
        worker = self._claimed_as.get(index, self._session.worker)
        try:
            with self._lock:
                if worker != self._session.worker:
                    raise Fenced
                self._claims.end(index, replace(entry, worker=self._session.name))
                self._refresh(always=True)
        except (OSError, Fenced) as error:
            if not self._was_fenced(worker):
                raise self.explain(error, entry.name or entry.prompt) from error

    def forget(self) -> None:
        """Take it that all videos that were kept or recovered so far were told of."""
        untold, self._untold = self._untold, []
        for record, part in untold:
            record.unlink(missing_ok=True)
            part.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Have the manifest say all that was published until now.

        Raises:
            StorageError: If the folder does not take it.
        """
        with self._explained(), self._lock, suppress(Fenced):
            self._refresh(always=True)

    def explain(self, error: OSError | Fenced, prompt: str = "") -> StorageError:
        """Say what is wrong with the folder, and what to do."""
        if isinstance(error, StorageError):
            return error
        again = "Run the same again: it goes on where it stopped."
        if not self.path.is_dir():
            return StorageError(
                f"{str(self.path)!r} was removed while videos were being made. {again}"
            )
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        name = f"{safe_stem(prompt)}{self._suffix}" if prompt else "What a batch keeps"
        return StorageError(
            f"{name} could not be written into {str(self.path)!r}: {reason}. "
            f"{'Free some space. ' if number == errno.ENOSPC else ''}{again}"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.explain(error) from error

    def _begin(self) -> None:
        """Join, and see what is there; also after having been taken for dead."""
        while True:
            if not self.path.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
            self._session.leave()
            with suppress(Fenced):
                self._join()
                self._look()
                self._deal_names()
                return

    def _join(self) -> None:
        self._untold = []
        self._session.join()
        self._claims.begin()
        self._recover()
        lines = self.manifest.read_lines()
        published = {line for _, line in self._published()}  # since then too
        self._content = b"".join(line + b"\n" for line in lines)
        self._base = [line for line in lines if line not in published]

    def _was_fenced(self, worker: str) -> bool:
        """Whether this worker was taken for dead; then it has come back, if it could."""
        with self._explained(), self._lock:
            if not self.path.is_dir():
                return False
            if self._session.is_member:
                return worker != self._session.worker
            if self._is_open:  # else its first process comes back for it
                self._begin()
        return True

    def _look(self) -> None:
        """Learn which videos are there whole; have those made again that are not any more."""
        self._there, pool = {}, dict[str, list[Entry]]()
        self.manifest.read()  # tells of lines that are none
        before = [*filter(None, map(parse_entry, self._base))]
        if self._before is None:
            self._before = set() if self._is_resumed else {(e.file, e.sha256) for e in before}
        own = [entry for entry, _ in self._published() if entry.status == DONE]
        seen = self._before | {(entry.file, entry.sha256) for entry in own}
        for entry in before:
            named = (entry.file, entry.sha256)
            if named not in seen and self._is_whole(entry):
                seen.add(named)
                pool.setdefault(entry.identity, []).append(entry)
        for index, entry in self._entries.items():
            record = self._claims.done(index)
            if record is not None and record.entry is not None:
                if self._is_lost(record.entry, record.part):
                    self._claims.void(index)
                    continue
                self._there[index] = record.entry
            elif pool.get(entry.identity):
                self._there[index] = pool[entry.identity].pop(0)
        self.unused = [entry for entries in pool.values() for entry in entries]

    def _is_whole(self, entry: Entry) -> bool:
        """Whether an entry's video is there as it was made."""
        file = entry.file
        return (
            entry.status == DONE
            and bool(file and entry.sha256 and Path(file).name == file)
            and sha256_of(self.path / str(file)) == entry.sha256
        )

    def _is_lost(self, entry: Entry, part: str) -> bool:
        """Whether a video that was published is nowhere.

        It goes from its worker's folder, that of one that was fenced perhaps, to its name, and is
        looked for in this order, so that it cannot slip through.
        """
        if self._is_whole(entry):
            return False
        on_its_way = any((home / part).is_file() for home in self._session.homes())
        return not on_its_way and not self._is_whole(entry)

    def _deal_names(self) -> None:
        """Agree with the other workers what the videos of the list are called."""
        listed = json.dumps([self._suffix, *sorted(self._wanted.items())])
        dealt = self._session.place(f"names-{sha256(listed.encode()).hexdigest()[:40]}")
        if not dealt.exists():
            taken: set[str] = set()
            sources: dict[str, Iterator[str]] = {}
            names = {}
            for index, text in self._wanted.items():
                if index in self._there:
                    continue
                source = sources.setdefault(safe_stem(text), names_for(text, self._suffix))
                names[index] = next(
                    name
                    for name in source
                    if name not in taken and not os.path.lexists(self.path / name)
                )
                taken.add(names[index])
            written = self._session.write("names", json.dumps(names).encode())
            self._session.publish(written, dealt)
        content = read_object(dealt) or {}
        self._names = {int(index): name for index, name in content.items()}

    def _free_name(self, index: int, entry: Entry) -> str:
        """The name that was dealt; another one where somebody has put something there."""
        dealt = self._names.get(index)
        if dealt is not None and not os.path.lexists(self.path / dealt):
            return dealt
        others = set(self._names.values())
        return next(
            name
            for name in names_for(entry.name or entry.prompt, self._suffix)
            if name not in others and not os.path.lexists(self.path / name)
        )

    def _publish(self, part: Path, record: Record) -> Path | None:
        """Publish a whole video of this worker and give it its name; None where another was first.

        Raises:
            Fenced: If this worker was taken for dead.
        """
        key = self._claims.keys[record.index]
        published = self._session.place("done") / key
        file = self._session.write(f"{key}.record", record.to_bytes())
        is_first = False
        try:
            is_first = self._session.publish(file, published)
            if is_first:
                path = self._name(part, record, published)
                self._untold.append((file, part))
                return path
        except OSError:
            if is_first:
                published.unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            raise
        file.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        return None

    def _name(self, part: Path, record: Record, published: Path) -> Path:
        """Give a video whose record is published its name.

        Raises:
            Fenced: If it is gone, because its worker was taken for dead.
        """
        assert record.entry is not None
        while True:
            path = self.path / str(record.entry.file)
            try:
                link(part, path)
            except FileExistsError:
                if sha256_of(path) != record.entry.sha256:  # another program took it just now
                    name = self._free_name(record.index, record.entry)
                    record = replace(record, entry=replace(record.entry, file=name))
                    self._session.write("renamed", record.to_bytes()).replace(published)
                    continue
            except FileNotFoundError:
                if not path.exists():
                    raise Fenced from None
            sync_folder(self.path)
            return path

    def _recover(self) -> None:
        """Fence the workers that are dead, and finish what they have made."""
        for left in self._session.fence():
            for file in sorted(left.glob("*.record")):
                with suppress(FileNotFoundError, Fenced):  # another worker does the same
                    self._recover_one(file)
            shutil.rmtree(left, ignore_errors=True)

    def _recover_one(self, file: Path) -> None:
        record = Record.read(file)
        published = self._session.place("done") / file.stem
        if record is None or record.entry is None or not create(file, published):
            return
        now = Record.read(published) or record
        path = self._name(file.parent / record.part, now, published)
        if path not in self.recovered:
            self.recovered.append(path)
            self.on_recovered(path)

    def _published(self) -> list[tuple[Entry, bytes]]:
        """What the workers of the session have published, with its line, in the list's order."""
        entries = (record.entry for record in self._claims.records())
        return [(entry, entry.to_line()) for entry in entries if entry is not None]

    def _refresh(self, *, always: bool = False) -> None:
        """Bring the manifest up to date; not `always`, only where it was not done just now.

        Raises:
            Fenced: If this worker was taken for dead.
            OSError: If it cannot be written.
        """
        started = time.monotonic()
        if not self._is_open or not (
            always or started - self._refreshed >= _REFRESH * self._refresh_s
        ):
            return
        while True:
            lines = [*self._base, *(line for _, line in self._published())]
            content = b"".join(line + b"\n" for line in lines)
            if content == self._content:
                break
            new = self._session.write("manifest", content)
            try:
                self.manifest.replace(new)
            except FileNotFoundError:
                raise Fenced from None
            self._content = content
        self._refreshed = time.monotonic()
        self._refresh_s = self._refreshed - started
