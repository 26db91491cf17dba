import threading
from dataclasses import replace
from pathlib import Path

import pytest
from support.waiting import wait_until

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.serve import queue as queue_module
from fastvideo_lightning.serve.jobs import Job, JobState, Request
from fastvideo_lightning.serve.queue import FullQueueError, JobQueue
from fastvideo_lightning.serve.view import show_progress


def ask(prompt: str = "a red circle") -> Request:
    return Request(prompt, SamplingParams())


def wait(job: Job) -> JobState:
    wait_until(lambda: job.look().state.is_final, timeout_s=10)
    return job.look().state


class Maker:
    """Makes a job once it is told to, step by step."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.started, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, job: Job) -> tuple[str, tuple[Path, ...]]:
        self.started.release()
        self.go_on.acquire(timeout=10)
        job.reach("denoise", 1, 2)
        if job.request.prompt == "broken":
            raise RuntimeError("Out of GPU memory in the denoise stage.")
        self.made.append(job.request.prompt)
        return "made", (Path("video.mp4"),)


@pytest.fixture
def maker():
    return Maker()


@pytest.fixture
def queue(maker):
    queue = JobQueue(maker, max_queue=2)
    yield queue
    for _ in range(10):
        maker.go_on.release()
    queue.close()


def test_jobs_are_made_one_at_a_time_in_the_order_they_came(queue, maker) -> None:
    jobs = [queue.submit(ask("one"))]
    maker.started.acquire(timeout=10)
    jobs += [queue.submit(ask("two")), queue.submit(ask("three"))]
    assert [queue.look(job).place for job in jobs] == [0, 1, 2]
    assert [queue.look(job).state for job in jobs] == [JobState.RUNNING, *[JobState.QUEUED] * 2]
    maker.go_on.release()
    assert wait(jobs[0]) is JobState.DONE
    maker.started.acquire(timeout=10)
    assert queue.look(jobs[2]).place == 1
    for _ in range(2):
        maker.go_on.release()
    assert [wait(job) for job in jobs] == [JobState.DONE] * 3
    assert maker.made == ["one", "two", "three"]
    assert queue.look(jobs[0]).files == (Path("video.mp4"),)


def test_a_job_that_nobody_is_ahead_of_is_shown_as_starting(queue) -> None:
    with queue._changed:  # the thread cannot take a job meanwhile
        first, second = queue.submit(ask()), queue.submit(ask())
        assert queue.look(first).state is JobState.QUEUED
        assert "Starting" in show_progress(queue.look(first))
        assert "Waiting" not in show_progress(queue.look(first))
        assert "Waiting, number 1 in the queue" in show_progress(queue.look(second))


def test_no_more_may_wait_than_was_said(queue, maker) -> None:
    queue.submit(ask())
    maker.started.acquire(timeout=10)
    waiting = [queue.submit(ask()), queue.submit(ask())]
    with pytest.raises(FullQueueError, match="2 videos wait already"):
        queue.submit(ask())
    queue.cancel(waiting[0])
    queue.submit(ask())


def test_one_that_waits_is_counted_as_one(maker) -> None:
    queue = JobQueue(maker, max_queue=1)
    jobs = [queue.submit(ask())]
    maker.started.acquire(timeout=10)
    jobs.append(queue.submit(ask()))
    with pytest.raises(FullQueueError, match="^One video waits already"):
        queue.submit(ask())
    assert "1 waits before it" in show_progress(replace(queue.look(jobs[1]), place=2))
    maker.go_on.release()
    queue.close()


def test_a_waiting_job_that_is_cancelled_is_never_begun(queue, maker) -> None:
    first = queue.submit(ask("one"))
    maker.started.acquire(timeout=10)
    second = queue.submit(ask("two"))
    queue.cancel(second)
    assert queue.look(second).state is JobState.CANCELLED
    maker.go_on.release()
    assert wait(first) is JobState.DONE
    assert maker.made == ["one"]


def test_a_running_job_that_is_cancelled_stops_at_its_next_step(queue, maker) -> None:
    first = queue.submit(ask("one"))
    maker.started.acquire(timeout=10)
    queue.cancel(first)
    second = queue.submit(ask("two"))
    maker.go_on.release()
    assert wait(first) is JobState.CANCELLED
    maker.go_on.release()
    assert wait(second) is JobState.DONE
    assert maker.made == ["two"]


def test_cancelling_what_has_ended_changes_nothing(queue, maker) -> None:
    job = queue.submit(ask())
    maker.go_on.release()
    assert wait(job) is JobState.DONE
    queue.cancel(job)
    assert queue.look(job).state is JobState.DONE


def test_a_failure_is_told_and_the_next_job_is_made(queue, maker) -> None:
    jobs = [queue.submit(ask("broken")), queue.submit(ask("two"))]
    for _ in jobs:
        maker.go_on.release()
    assert [wait(job) for job in jobs] == [JobState.FAILED, JobState.DONE]
    assert queue.look(jobs[0]).message == "Out of GPU memory in the denoise stage."
    assert queue.look(jobs[0]).files == ()


def test_closing_stops_what_is_left_and_takes_nothing_new(maker) -> None:
    queue = JobQueue(maker, max_queue=2)
    running, waiting = queue.submit(ask()), queue.submit(ask())
    maker.started.acquire(timeout=10)
    threading.Timer(0.05, maker.go_on.release).start()
    queue.close()
    queue.close()
    assert [job.look().state for job in (running, waiting)] == [JobState.STOPPED] * 2
    assert maker.made == []
    with pytest.raises(FullQueueError, match="shutting down"):
        queue.submit(ask())


def test_that_the_server_was_stopped_is_said_before_the_step_ends(queue, maker) -> None:
    jobs = [queue.submit(ask("done"))]
    maker.started.acquire(timeout=10)
    jobs += [queue.submit(ask()), queue.submit(ask())]
    maker.go_on.release()
    maker.started.acquire(timeout=10)
    queue.stop()
    for job in jobs[1:]:
        assert "The server was stopped" in show_progress(queue.look(job))
    assert queue.look(jobs[0]).state is JobState.DONE
    maker.go_on.release()
    queue.close()
    assert [queue.look(job).state for job in jobs[1:]] == [JobState.STOPPED] * 2
    assert maker.made == ["done"]


def test_only_the_last_finished_jobs_are_remembered(queue, maker, monkeypatch) -> None:
    monkeypatch.setattr(queue_module, "_MAX_REMEMBERED", 3)
    ids = []
    for _ in range(6):
        maker.go_on.release()
        job = queue.submit(ask())
        ids.append(job.id)
        wait(job)
    assert [queue.find(job_id) is not None for job_id in ids] == [False, False, *[True] * 4]
