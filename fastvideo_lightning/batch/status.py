"""How a batch stands: what is done, what failed, who has what in work. Reads, and joins nothing."""

from dataclasses import dataclass
from pathlib import Path

from fastvideo_lightning.batch.claims import Record
from fastvideo_lightning.batch.folder import NOW, OWN
from fastvideo_lightning.batch.manifest import DONE, MANIFEST, Entry, Manifest
from fastvideo_lightning.batch.session import About, list_names, read_object


@dataclass(frozen=True)
class WorkerStatus:
    """A worker that is there.

    Attributes:
        name: Its machine and process.
        started: When it joined, in ISO 8601, by its machine's clock.
        num_done: Videos that it has made.
        now: The video that it has in work; empty where it has none.
    """

    name: str
    started: str
    num_done: int
    now: str


@dataclass(frozen=True)
class BatchStatus:
    """How a batch stands.

    Attributes:
        num_done: Videos that are made.
        num_failed: Videos whose last try failed.
        num_left: Videos that are to be made, those in work among them; None where nobody works.
        workers: Who is there.
        left_s: Seconds until the end, by what a video took so far; None where that is unknown.
    """

    num_done: int
    num_failed: int
    num_left: int | None
    workers: list[WorkerStatus]
    left_s: float | None


def read_status(folder: Path) -> BatchStatus:
    """Read how the batch in a folder stands.

    Raises:
        FileNotFoundError: If no batch was made in the folder.
        OSError: If it cannot be read.
    """
    own = folder / OWN
    homes = [own / "workers" / name for name in list_names(own / "workers")]
    if not homes and not (folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"There is no {MANIFEST} in {str(folder)!r}. Pass the folder of a batch, the "
            "--output-path of generate --prompts."
        )
    entries = {(e.file, e.sha256, e.identity): e for e in Manifest(folder).read(quiet=True)}
    session = own / homes[0].name.partition(".")[0] if homes else own / "none"
    for part in ("done", "ended"):
        for name in list_names(session / part):
            record = Record.read(session / part / name)
            if record is not None and (entry := record.entry) is not None:
                entries[entry.file, entry.sha256, entry.identity] = entry
    made = [entry for entry in entries.values() if entry.status == DONE]
    identities = {entry.identity for entry in made}
    failed = {e.identity for e in entries.values()} - identities
    workers = [_read_worker(home, made) for home in homes]
    if not homes:
        return BatchStatus(len(made), len(failed), None, [], None)
    dealt = {
        name for file in session.glob("names-*") for name in (read_object(file) or {}).values()
    }
    num_left = max(0, len(dealt - {entry.file for entry in made}) - len(failed))
    times = [s for e in made if isinstance(s := e.time.get("generation_s"), int | float)]
    left_s = num_left * sum(times) / len(times) / len(workers) if times else None
    return BatchStatus(len(made), len(failed), num_left, workers, left_s)


def _read_worker(home: Path, made: list[Entry]) -> WorkerStatus:
    about = About.read(home)
    try:
        now = (home / NOW).read_text()
    except OSError:
        now = ""
    if any(entry.file == now for entry in made):
        now = ""
    num_done = sum(entry.worker == about.name for entry in made)
    return WorkerStatus(about.name, about.started, num_done, now)
