"""The queue: jobs are made one after the other, by a single thread."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from fastvideo_lightning.serve.jobs import Cancelled, Job, JobState, Progress, Request

_log = logging.getLogger(__name__)
_MAX_REMEMBERED = 100  # finished jobs that can still be asked for


class FullQueueError(RuntimeError):
    """No further video can wait."""


class JobQueue:
    """Makes jobs in their order, on one thread, and refuses more than can wait.

    Args:
        make: Makes the video of a job and returns a line about it and its files. What it raises is
            the job's failure; `Cancelled` is none.
        max_queue: Jobs that may wait besides the one that runs.
        explain: Turns what `make` raised into text for the visitor.
    """

    def __init__(
        self,
        make: Callable[[Job], tuple[str, tuple[Path, ...]]],
        *,
        max_queue: int,
        explain: Callable[[Exception], str] = str,
    ) -> None:
        self._make, self._explain, self._max_queue = make, explain, max_queue
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._jobs: dict[str, Job] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Job:
        """Queue a request.

        Raises:
            FullQueueError: If as many wait as may.
        """
        with self._changed:
            if self._is_closed:
                raise FullQueueError("The page is shutting down. Start it again.")
            if len(self._waiting) >= self._max_queue:
                full = f"{len(self._waiting)} videos wait already, and no more may here."
                if len(self._waiting) == 1:
                    full = "One video waits already, and no more may here."
                raise FullQueueError(f"{full} Try again when one is done.")
            job = Job(request)
            self._jobs[job.id] = job
            self._forget_old()
            self._waiting.append(job)
            self._changed.notify()
            return job

    def find(self, job_id: str) -> Job | None:
        """Return the job of that id, or None if there is none, or it is long finished."""
        with self._changed:
            return self._jobs.get(job_id)

    def look(self, job: Job) -> Progress:
        """Return what the job looks like now."""
        with self._changed:
            if job not in self._waiting:
                return job.look()
            return job.look(self._waiting.index(job) + self._is_busy)

    def cancel(self, job: Job) -> None:
        """Take it out of the queue, or have it stop at its next step; else nothing."""
        with self._changed:
            job.abandon()
            if job in self._waiting:
                self._waiting.remove(job)
                job.finish(JobState.CANCELLED, "Cancelled before its turn came.")

    def stop(self) -> None:
        """Take nothing new and stop everything; what runs still ends its step."""
        with self._changed:
            self._is_closed = True
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                job.stop()
            self._waiting.clear()
            self._changed.notify()

    def close(self) -> None:
        """Stop everything and wait for the thread; a second call does nothing."""
        self.stop()
        self._thread.join()

    @property
    def _is_busy(self) -> bool:
        """Whether a video is being made, so that the first one that waits is not yet begun."""
        return self._running is not None and not self._running.look().state.is_final

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                job = self._running = self._waiting.popleft()
                job.start()
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            message, files = self._make(job)
        except Cancelled:
            job.finish(JobState.CANCELLED, "Nothing of it was kept.")
        except Exception as error:
            _log.debug("job %s failed", job.id, exc_info=True)
            job.finish(JobState.FAILED, self._explain(error))
        else:
            job.finish(JobState.DONE, message, files)

    def _forget_old(self) -> None:
        finished = [job for job in self._jobs.values() if job.look().state.is_final]
        for job in finished[:-_MAX_REMEMBERED]:
            del self._jobs[job.id]
