"""What a visitor made: shown with its settings, and filled into the form again."""

from pathlib import Path

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.serve.form import read_form
from fastvideo_lightning.serve.gallery import MAX_SHOWN, remember, settings_of, show_gallery
from fastvideo_lightning.serve.jobs import Job, JobState, Request


def made(prompt: str = "a red circle", budget: float | None = None) -> Job:
    params = SamplingParams(width=48, num_frames=9, fps=8, guidance_scale=2.5, seed=7)
    job = Job(Request(prompt, params, budget))
    job.start()
    job.finish(JobState.DONE, "made", (Path("/videos/a b.mp4"),))
    return job


def test_the_form_filled_again_asks_for_the_same_video() -> None:
    for job in (made(), made(budget=5.5)):
        assert read_form(settings_of(job)) == job.request


def test_the_newest_comes_first_once_and_old_ones_go() -> None:
    first, second = made(), made()
    assert remember([first.id], second) == [second.id, first.id]
    assert remember([second.id, first.id], first) == [first.id, second.id]
    assert len(remember([str(i) for i in range(99)], first)) == MAX_SHOWN
    assert remember({"not": "a list"}, None) == []


def test_a_video_that_was_not_made_is_not_remembered() -> None:
    job = Job(Request("a", SamplingParams()))
    assert remember([], job) == []
    assert show_gallery([job]) == ""


def test_a_prompt_in_the_gallery_is_no_markup() -> None:
    html = show_gallery([made("<img src=x>")])
    assert "<img" not in html
    assert "48x" in html
    assert "a%20b.mp4" in html
