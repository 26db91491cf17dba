"""Why a process ended: what it wrote before, or what its exit code tells."""

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

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
        """Describe a process that ended without a word; with code 0 before its work was done."""
        if code == 0:
            return cls(
                False, time.time(), rank, "it ended with exit code 0 before its work was done"
            )
        if code > 0:
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


class Ledger:
    """What the processes of a node tell each other: lines in a file that has no name.

    The first process makes it and the others inherit it open, so that nothing of it is left once
    the last of them is gone, however it went.

    Args:
        file_number: The open file.
    """

    def __init__(self, file_number: int) -> None:
        self.file_number = file_number

    @classmethod
    def create(cls) -> Self:
        """Make an empty one."""
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
        return cls(number)

    @classmethod
    def inherit(cls, file_number: int) -> Self:
        """Take over what the first process has made; who this one starts does not."""
        os.set_inheritable(file_number, False)
        return cls(file_number)

    def note(self, failure: Failure) -> None:
        """Say why this process ends."""
        self._write(failed=asdict(failure))

    def say_ended(self, rank: int) -> None:
        """Say that a process has come to the end of its work."""
        self._write(ended=rank)

    def speak(self, rank: int) -> bool:
        """Whether this process is the first to ask: one tells the user what became of all."""
        self._write(speaks=rank)
        return next((found == rank for found in self._read("speaks")), False)

    @property
    def failures(self) -> dict[int, Failure]:
        """What processes have ended by, by rank."""
        found = [Failure(**values) for values in self._read("failed")]
        return {failure.rank: failure for failure in found}

    @property
    def ended(self) -> set[int]:
        """Which have come to the end of their work."""
        return set(self._read("ended"))

    def _write(self, **entry: object) -> None:
        # All write at the end, for they share one position.
        with contextlib.suppress(OSError):  # no space is left: the exit code has to do
            os.write(self.file_number, f"{json.dumps(entry)}\n".encode())

    def _read(self, kind: str) -> Iterator[Any]:
        content = os.pread(self.file_number, os.fstat(self.file_number).st_size, 0)
        for line in content.split(b"\n")[:-1]:
            entry = json.loads(line)
            if kind in entry:
                yield entry[kind]


def _follows(error: BaseException) -> bool:
    from torch.distributed import DistError

    text = str(error).lower()
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError)
        and (text.startswith("rank ") or any(word in text for word in _OF_THE_CARRIER))
    )
