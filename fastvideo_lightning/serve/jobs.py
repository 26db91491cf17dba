"""A job: one video that a visitor asked for, how far it is, and what stops it."""

import threading
import time
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from uuid import uuid4

from fastvideo_lightning.config import SamplingParams


class JobWatch:
    """Passes the moments of the predict loop on to the job that is being made."""

    def __init__(self) -> None:
        self.job: Job | None = None

    def on_predict_batch_start(self) -> None:
        """Encoding begins."""
        self._reach("encode")

    def on_denoise_step_start(self, step: int, num_steps: int) -> None:
        """A step begins; a job that is not wanted any more stops here."""
        self._reach("denoise", step, num_steps)

    def on_denoise_step_end(self, step: int, num_steps: int) -> None:
        """A step is done; after the last one comes decoding."""
        self._reach("decode" if step + 1 == num_steps else "denoise", step + 1, num_steps)

    def on_predict_batch_end(self) -> None:
        """The frames are there and will be written."""
        self._reach("write")

    def _reach(self, stage: str, step: int = 0, num_steps: int = 0) -> None:
        if self.job is not None:
            self.job.reach(stage, step, num_steps)


class JobState(Enum):
    """How far a job is.

    QUEUED: it waits; nothing of it is in memory but what was typed.
    RUNNING: its video is being made, or the model is being placed for it.
    DONE: its video is written.
    FAILED: there is no video; `message` says why.
    CANCELLED: there is no video because nobody wants it any more.
    STOPPED: there is no video because the page ended; a step of it may still be computed.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Request:
    """One video as a visitor asked for it.

    Attributes:
        prompt: What it shows.
        params: How it is sampled.
        budget_gib: GiB that may be reserved on the GPU, or `auto`; None is what the page was
            started with.
    """

    prompt: str
    params: SamplingParams
    budget_gib: float | str | None = None


@dataclass(frozen=True)
class Progress:
    """What a job looks like at one moment.

    Attributes:
        state: How far it is.
        place: Its place in the queue, from 1; 0 when it does not wait for another video.
        stage: What is being done: load, encode, denoise, decode or write.
        step: Denoising steps that are done.
        num_steps: All of them; 0 while that is unknown.
        step_s: Mean seconds of a step; 0 before the second.
        elapsed_s: Seconds since its turn came.
        message: What went wrong, or what the finished video is.
        files: What it wrote, the video first, then its report.
    """

    state: JobState = JobState.QUEUED
    place: int = 0
    stage: str = ""
    step: int = 0
    num_steps: int = 0
    step_s: float = 0.0
    elapsed_s: float = 0.0
    message: str = ""
    files: tuple[Path, ...] = ()


_STOPPED = "The server was stopped before this video was done. Ask for it again when it is back."


class Cancelled(BaseException):
    """Raised inside a video that nobody wants any more; like Ctrl-C, it is no failure."""


class Job:
    """One request and what became of it. Only the queue's thread, `cancel` and `stop` change it."""

    def __init__(self, request: Request) -> None:
        self.id = uuid4().hex
        self.request = request
        self.created_at = self.finished_at = time.time()
        self._progress = Progress()
        self._started_at: float | None = None
        self._steps_started_at = 0.0
        self._is_unwanted, self._is_stopped = threading.Event(), threading.Event()

    def start(self) -> None:
        """Its turn has come."""
        self._started_at = time.perf_counter()
        self._progress = Progress(JobState.RUNNING)

    def reach(self, stage: str, step: int = 0, num_steps: int = 0) -> None:
        """Note a stage and its steps; raise `Cancelled` if the job is not wanted any more."""
        if self._is_unwanted.is_set():
            raise Cancelled
        now = time.perf_counter()
        if step == 0:
            self._steps_started_at = now
        step_s = (now - self._steps_started_at) / step if step else self._progress.step_s
        self._progress = replace(
            self._progress,
            stage=stage,
            step=step or self._progress.step,
            num_steps=num_steps or self._progress.num_steps,
            step_s=step_s,
        )

    def finish(self, state: JobState, message: str, files: tuple[Path, ...] = ()) -> None:
        """Note the end."""
        self.finished_at = time.time()
        self._progress = replace(
            self._progress, state=state, message=message, files=files, elapsed_s=self._elapsed_s()
        )

    def abandon(self) -> None:
        """Have the next `reach` raise."""
        self._is_unwanted.set()

    def stop(self) -> None:
        """Have the next `reach` raise because the page ends; this shows at once."""
        self._is_stopped.set()
        self._is_unwanted.set()

    def look(self, place: int = 0) -> Progress:
        """Return what it looks like now, `place` being where it stands in the queue."""
        progress = self._progress
        if self._is_stopped.is_set() and progress.state not in (JobState.DONE, JobState.FAILED):
            return replace(progress, state=JobState.STOPPED, message=_STOPPED)
        if progress.state is JobState.RUNNING:
            return replace(progress, elapsed_s=self._elapsed_s())
        return replace(progress, place=place)

    def _elapsed_s(self) -> float:
        return 0.0 if self._started_at is None else time.perf_counter() - self._started_at
