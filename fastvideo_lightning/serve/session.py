"""What happens between a visitor's click and the end of their video."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvideo_lightning.serve.bars import draw_bars
from fastvideo_lightning.serve.form import explain, read_form
from fastvideo_lightning.serve.gallery import remember, settings_of, show_gallery
from fastvideo_lightning.serve.jobs import Job, Progress
from fastvideo_lightning.serve.queue import FullQueueError
from fastvideo_lightning.serve.studio import Studio
from fastvideo_lightning.serve.view import (
    show_error,
    show_idle,
    show_plan,
    show_preview,
    show_progress,
    show_refusal,
    show_report,
)

LOOK_EVERY_S = 0.3
REFUSALS = (TypeError, ValueError, OSError, FullQueueError)


@dataclass(frozen=True)
class View:
    """What the page shows at one moment.

    Attributes:
        status: The box, as HTML.
        job_id: The job it is about, or None.
        is_open: Whether that job is still to end.
        files: What it wrote, the video first.
        report: What the run did, as HTML.
        preview: What it looks like while it is made, as HTML; empty where nothing is known of it.
    """

    status: str
    job_id: str | None = None
    is_open: bool = False
    files: tuple[Path, ...] = ()
    report: str = ""
    preview: str = ""


class Session:
    """Answers the page's clicks.

    Args:
        studio: What makes the videos.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    async def make(self, values: Sequence[Any]) -> AsyncIterator[View]:
        """Queue what the form's fields say, then show how far it is until it ends."""
        try:
            request = read_form(values)
            # On a thread: a model that is asked for the first time may look at an image.
            job = await asyncio.to_thread(self._studio.submit, request)
        except REFUSALS as error:
            yield View(show_error(explain(error)))
            return
        async for view in self._follow(job):
            yield view

    async def resume(self, job_id: str | None) -> AsyncIterator[View]:
        """Show the video that this browser asked for last, if it is still remembered."""
        job = self._find(job_id)
        if job is None:
            yield View(show_idle())
            return
        async for view in self._follow(job):
            yield view

    async def plan(self, values: Sequence[Any]) -> str:
        """Return what goes where for the form's video, or why that cannot be said, as HTML."""
        try:
            plan = await asyncio.to_thread(self._studio.plan, read_form(values))
            return show_plan(draw_bars(plan, self._studio.weights_on_cpu()))
        except REFUSALS as error:
            return show_plan(show_refusal(explain(error)))

    def gallery(self, known: object, job_id: str | None) -> tuple[list[str], str]:
        """Return which videos this browser has made, that of `job_id` with them, and as HTML."""
        ids = remember(known, self._find(job_id))
        jobs = [job for job in map(self._find, ids) if job is not None]
        return [job.id for job in jobs], show_gallery(jobs)

    def settings(self, job_id: object) -> list[Any] | None:
        """Return what the form's fields were for a job; None if it is no longer remembered."""
        job = self._find(job_id)
        return None if job is None else settings_of(job)

    def _find(self, job_id: object) -> Job | None:
        return self._studio.find(job_id) if isinstance(job_id, str) else None

    def _preview(self, progress: Progress) -> str:
        is_shown = not progress.state.is_final and progress.stage in ("denoise", "decode")
        return show_preview(self._studio.preview()) if is_shown else ""

    def cancel(self, job_id: str | None) -> None:
        """Stop that job; it ends in whatever it does next."""
        job = self._find(job_id)
        if job is not None:
            self._studio.cancel(job)

    async def _follow(self, job: Job) -> AsyncIterator[View]:
        shown = None
        while True:
            progress = self._studio.look(job)
            view = View(
                show_progress(progress),
                job.id,
                not progress.state.is_final,
                progress.files,
                await asyncio.to_thread(_read_report, progress.files),
                await asyncio.to_thread(self._preview, progress),
            )
            if view != shown:
                yield view
            if progress.state.is_final:
                return
            shown = view
            await asyncio.sleep(LOOK_EVERY_S)


def _read_report(files: Sequence[Path]) -> str:
    """Show the report of a finished video; nothing where there is no such file any more."""
    try:
        return show_report(files[1]) if len(files) > 1 else ""
    except OSError:
        return ""
