"""The workers that are at a folder together: who is there, who is gone, and what one may publish.

# Note [Workers without locks]
Locks do not hold over NFS and clocks differ between machines, so neither is asked. What is asked of
the file system is that `link` and `mkdir` fail where the name is taken, that `rename` is one step,
and that `rmdir` takes an empty folder alone.

A worker is a folder in `workers/`, and is there as long as that folder is. In it lies all that it
publishes from: the file that its claims are links to, its records, its unfinished videos. Whoever
takes it for dead renames that folder away, in one step and for good. If it was only asleep, each
of its next steps finds no file to link from: it publishes nothing, and joins anew.

It is taken for dead if another worker has read the same count of its heartbeat for `stale_s` of
that worker's own monotonic clock, or at once where its process ran on this machine and is gone.

The workers of one time are a session, and their folders' names begin with its name. What they have
agreed on lies in a folder of that name. The first one brings `workers/` with its own folder inside,
by a rename that fails where another is there already; the last one removes `workers/`, which fails
where somebody has joined. So whoever succeeds is alone, and removes the session.
"""

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from fastvideo_lightning.output.files import NO_LINKS, sync

STALE_S = 60.0
_BEATS = 12  # in that time
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}
_PARTS = ("claims", "done", "ended", "left")


class Fenced(Exception):
    """This worker was taken for dead, and another may be making its video."""


@dataclass(frozen=True)
class About:
    """What a worker says of itself.

    Attributes:
        host: Its machine.
        process: Its number there.
        mark: What tells the process from all others of this machine; empty where that is unknown.
        started: In ISO 8601, by its machine's clock.
    """

    host: str = ""
    process: int = 0
    mark: str = ""
    started: str = ""

    @property
    def name(self) -> str:
        """Machine and process, as people read it."""
        return f"{self.host}:{self.process}"

    @property
    def is_gone(self) -> bool:
        """Whether its process ran on this machine and is no more; False where nobody can tell."""
        machine, _, born = self.mark.rpartition(" ")
        return bool(self.mark) and machine == _machine() and born != _born(self.process)

    @classmethod
    def of_this_process(cls) -> "About":
        """Describe the process that asks."""
        number = os.getpid()
        machine, born = _machine(), _born(number)
        mark = f"{machine} {born}" if machine and born else ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), number, mark, now)

    @classmethod
    def read(cls, worker: Path) -> "About":
        """Read what a worker wrote into its folder; unknown where that is not there."""
        try:
            return cls(**json.loads((worker / "about").read_text()))
        except (OSError, ValueError, TypeError):
            return cls()


class Session:
    """One worker among those of a folder; see Note [Workers without locks].

    Args:
        root: Folder of the workers' own files.
        stale_s: How long a heartbeat may stand still, in seconds of the observer.

    Attributes:
        worker: Name of this worker's folder; empty before it has joined.
    """

    def __init__(self, root: Path, *, stale_s: float = STALE_S) -> None:
        self.root = root
        self.worker = ""
        self._workers = root / "workers"
        self._stale_s = stale_s
        self._seen: dict[str, tuple[str, float]] = {}
        self._ends = Event()
        self._thread: Thread | None = None

    @property
    def home(self) -> Path:
        """This worker's folder."""
        return self._workers / (self.worker or "none")

    @property
    def is_member(self) -> bool:
        """Whether this worker is there."""
        return bool(self.worker) and self.home.is_dir()

    def place(self, part: str) -> Path:
        """One of the folders that all workers of the session share."""
        return self.root / self.worker.partition(".")[0] / part

    def enter(self, worker: str) -> None:
        """Take part as a process of a worker that has joined already."""
        self.worker = worker

    def join(self) -> None:
        """Become a worker of the session that there is, or the first one of another.

        Raises:
            OSError: If it cannot, as where the folder that all is in is gone.
        """
        self.leave()
        self._make_root()
        while not (self._join() and self.is_member):
            self._make_root()
        for part in _PARTS:
            with suppress(FileExistsError):
                self.place(part).mkdir(parents=True)
        for name in list_names(self.root):  # sessions whose end was cut short
            if name not in ("workers", self.worker.partition(".")[0]) and "." not in name:
                shutil.rmtree(self.root / name, ignore_errors=True)
        self._ends, self._seen = Event(), {}
        self._thread = Thread(target=self._beat_until, args=(self._ends,), daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Be no worker any more; the last one takes the session away. Idempotent."""
        self._ends.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        gone = self.place("left") / self.worker
        with suppress(OSError):
            self.home.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            self._workers.rmdir()
            shutil.rmtree(self.place(""), ignore_errors=True)
            for name in list_names(self.root):
                if name.endswith(".new"):  # of a process that was killed, or that tries once more
                    shutil.rmtree(self.root / name, ignore_errors=True)
            self.root.rmdir()
        self.worker = ""

    @property
    def name(self) -> str:
        """Machine and process of this worker, as people read it."""
        return self.about(self.worker).name

    def homes(self) -> Iterator[Path]:
        """Give the folders of all workers, then of those that were fenced in the meantime."""
        for folder in (self._workers, self.place("left")):
            yield from (folder / name for name in list_names(folder))

    def others(self) -> list[str]:
        """Names of the other workers that are there."""
        return [name for name in list_names(self._workers) if name != self.worker]

    def is_there(self, worker: str) -> bool:
        """Whether a worker is there, by its name."""
        return bool(worker) and (self._workers / worker).is_dir()

    def about(self, worker: str) -> About:
        """What a worker says of itself."""
        return About.read(self._workers / worker)

    def fence(self) -> list[Path]:
        """Send away the workers that are dead; return the folders of all that were sent away."""
        now = time.monotonic()
        self._observe()
        for name in self.others():
            _, since = self._seen.get(name, ("", now))
            if now - since >= self._stale_s or self.about(name).is_gone:
                with suppress(OSError):  # another was faster
                    (self._workers / name).rename(self.place("left") / name)
        left = self.place("left")
        return [left / name for name in list_names(left)]

    def write(self, name: str, content: bytes) -> Path:
        """Write a file into this worker's folder and have it on the disk.

        Raises:
            Fenced: If the folder is gone.
            OSError: If it cannot be written.
        """
        path = self.home / name
        try:
            with path.open("wb") as file:
                file.write(content)
                sync(file)
        except FileNotFoundError:
            raise Fenced from None
        return path

    def publish(self, source: Path, path: Path) -> bool:
        """Have `path` hold what a file of this worker holds; whole, and only if it is the first.

        Returns:
            Whether it holds that now; False where another was first.

        Raises:
            Fenced: If the file is gone, because this worker was taken for dead.
        """
        try:
            return create(source, path)
        except FileNotFoundError:
            raise Fenced from None

    def _make_root(self) -> None:
        with suppress(FileExistsError):  # though it may be removed again at any time
            self.root.mkdir()

    def _join(self) -> bool:
        """Try once; False where others came or went meanwhile."""
        there = list_names(self._workers)
        if there:
            session = there[0].partition(".")[0]
            self.worker = f"{session}.{uuid4().hex}"
            try:
                self._furnish(self._workers)
            except FileNotFoundError:
                return False
            if all(name.partition(".")[0] == session for name in list_names(self._workers)):
                return True
            shutil.rmtree(self.home, ignore_errors=True)  # that session has ended meanwhile
            return False
        self.worker = f"{uuid4().hex}.{uuid4().hex}"
        prepared = self.root / f"{uuid4().hex}.new"
        try:
            prepared.mkdir()
            self._furnish(prepared)
            prepared.rename(self._workers)
        except FileNotFoundError:  # the last one has removed all meanwhile
            return False
        except OSError as error:
            shutil.rmtree(prepared, ignore_errors=True)
            if error.errno not in _TAKEN:
                raise
            with suppress(OSError):  # left empty, on a system whose rename minds it
                self._workers.rmdir()
            return False
        return True

    def _furnish(self, workers: Path) -> None:
        """Make this worker's folder, under a name of its own until all is in it."""
        new = self.root / f"{uuid4().hex}.new"
        new.mkdir()
        (new / "about").write_text(json.dumps(vars(About.of_this_process())))
        (new / "name").write_text(self.worker)
        (new / "beat").write_text("0")
        try:
            new.rename(workers / self.worker)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _beat_until(self, ends: Event) -> None:
        """Count, so that others see that this worker lives, and look at their counts."""
        count = 0
        while not ends.wait(self._stale_s / _BEATS):
            count += 1
            with suppress(OSError):
                if self.home.is_dir():
                    (self.home / "beat").write_text(str(count))
                self._observe()

    def _observe(self) -> None:
        """Note since when, by this clock, each other worker's heartbeat has stood still."""
        for name in self.others():
            try:
                count = (self._workers / name / "beat").read_text()
            except OSError:
                count = ""
            if self._seen.get(name, (None, 0.0))[0] != count:
                self._seen[name] = (count, time.monotonic())


def create(source: Path, path: Path) -> bool:
    """Have `path` hold what `source` holds, whole or not at all; False where it holds other things.

    Where a file system has no hard links it is created exclusively and written: cut short by a kill
    it is no record, and counts for nothing.
    """
    try:
        os.link(source, path)
    except FileExistsError:  # over NFS also where the answer to a link that was made got lost
        return _is_same(source, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        content = source.read_bytes()
        try:
            with path.open("xb") as file:
                file.write(content)
                sync(file)
        except FileExistsError:
            return path.read_bytes() == content
    return True


def _is_same(source: Path, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return source.samefile(path)
    return False


def list_names(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    with suppress(OSError):
        return sorted(os.listdir(folder))
    return []


def _machine() -> str:
    """What tells this machine, since it was started, and this space of processes from others."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _born(process: int) -> str:
    """When a process of this machine was started, in ticks; empty where there is none."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def read_object(path: Path) -> dict[str, Any] | None:
    """Read an object of JSON; None where there is none, or one that a kill cut short."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
