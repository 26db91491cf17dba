"""Why a process ended: what it wrote before, or what its exit code tells."""

import json
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

# How the libraries that carry collectives say that another process is gone.
_OF_THE_CARRIER = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")


@dataclass(frozen=True, order=True)
class Failure:
    """One process that failed; the smallest of several is the cause of the others.

    Attributes:
        follows: Whether it looks like the consequence of another's: a peer was gone.
        time_s: When it was noted; 0 for one that could not say a word.
        rank: Which process.
        reason: Why, in one line.
    """

    follows: bool
    time_s: float
    rank: int
    reason: str

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Self:
        """Describe an exception."""
        line = str(error).strip().partition("\n")[0]
        name = type(error).__name__
        return cls(_follows(error), time.time(), rank, f"{name}: {line}" if line else name)

    @classmethod
    def of_exit(cls, rank: int, code: int) -> Self:
        """Describe a process that ended without a word."""
        if code >= 0:
            return cls(False, time.time(), rank, f"it ended with exit code {code}")
        name = signal.Signals(-code).name
        reason = f"it was killed by {name}"
        if -code == signal.SIGKILL:
            reason += ", as the system does when memory runs out"
        return cls(False, 0.0, rank, reason)

    @property
    def line(self) -> str:
        """What to tell the user."""
        return f"Error: rank {self.rank} failed: {self.reason}"

    def write(self, folder: Path) -> None:
        """Leave it where the other processes of the node look."""
        half = folder / f"{self.rank}.tmp"
        try:
            half.write_text(json.dumps(asdict(self)), encoding="utf-8")
            half.rename(folder / f"{self.rank}.json")
        except OSError:  # the first process has removed the folder: nobody looks any more
            return


def read_failures(folder: Path) -> dict[int, Failure]:
    """Return what the processes of the node have left, by rank."""
    found = [Failure(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return {failure.rank: failure for failure in found}


def _follows(error: BaseException) -> bool:
    from torch.distributed import DistError

    text = str(error).lower()
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError)
        and (text.startswith("rank ") or any(word in text for word in _OF_THE_CARRIER))
    )
