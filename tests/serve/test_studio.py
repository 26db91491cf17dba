import shutil
import time
from dataclasses import replace

import av
import pytest
import torch
from support.waiting import wait_until

from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan import make_plan
from fastvideo_lightning.plan.plan import plan_text
from fastvideo_lightning.serve.form import explain
from fastvideo_lightning.serve.jobs import Job, JobState, Request
from fastvideo_lightning.serve.queue import FullQueueError
from fastvideo_lightning.serve.studio import WantedImages

PROMPT = "a red circle moves right"


def ask(prompt: str = PROMPT, **sampling) -> Request:
    return Request(prompt, SamplingParams(**{"num_inference_steps": 4, **sampling}))


def end_of(studio, job):
    """Return how the job ended."""
    wait_until(lambda: studio.look(job).state.is_final)
    return studio.look(job)


def read_frames(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_words_that_the_model_does_not_know_are_said_beside_its_video(studio) -> None:
    sees_all, sees_less = (
        end_of(studio, studio.submit(ask(prompt, width=48, num_frames=9, num_inference_steps=1)))
        for prompt in ("a red circle moves right", "a cat moves right")
    )
    assert "does not know" not in sees_all.message
    assert "s. The model does not know 'cat': what is shown will not follow." in sees_less.message


def test_a_request_becomes_a_video_in_the_output_folder(studio, output) -> None:
    seen = set()
    job = studio.submit(ask(width=48, num_frames=9))
    while not (progress := studio.look(job)).state.is_final:
        seen.add((progress.stage, progress.num_steps))
        time.sleep(0.002)
    assert progress.state is JobState.DONE, progress.message
    assert progress.message.startswith("48x64, 9 frames at 8 fps, seed 1024: made in ")
    path, report = progress.files
    assert path.parent == report.parent == output
    assert report.name == f"{path.stem}.report.html"
    assert "What the run did" in report.read_text()
    frames = read_frames(path)
    assert len(frames) == 9
    assert frames[0].shape == (64, 48, 3)
    assert ("denoise", 4) in seen
    assert progress.step == 4


def test_a_video_whose_report_cannot_be_written_is_shown_all_the_same(
    studio, output, monkeypatch
) -> None:
    def refuse(timeline, path):
        raise OSError(f"The report {path.name!r} cannot be written: no room.")

    monkeypatch.setattr("fastvideo_lightning.serve.studio.write_report", refuse)
    progress = end_of(studio, studio.submit(ask(num_frames=1, num_inference_steps=1)))
    assert progress.state is JobState.DONE
    assert "report.html' cannot be written: no room." in progress.message
    (path,) = progress.files
    assert len(read_frames(path)) == 1


def test_a_cancelled_video_leaves_no_file_and_the_next_one_is_whole(studio, output) -> None:
    before = set(output.iterdir())
    job = studio.submit(ask(num_inference_steps=20, width=96, height=96))
    wait_until(lambda: studio.look(job).step >= 1)
    studio.cancel(job)
    progress = end_of(studio, job)
    assert progress.state is JobState.CANCELLED
    assert 1 <= progress.step < 20
    assert set(output.iterdir()) == before
    after = end_of(studio, studio.submit(ask(num_frames=9)))
    again = end_of(studio, studio.submit(ask(num_frames=9)))
    assert after.files[0].read_bytes() == again.files[0].read_bytes()


REFUSED = [
    ({"prompt": "  "}, "prompt is empty"),
    ({"prompt": "x" * 2001}, "prompt must be 2000 characters or fewer here, got 2001"),
    ({"negative_prompt": "x" * 2001}, "negative_prompt must be 2000 characters or fewer"),
    ({"width": 112}, "width must be 96 or less here, got 112"),
    ({"height": 10**9}, "height must be 96 or less here"),
    ({"num_frames": 37}, "num_frames must be 33 or less here, got 37. Enter num_frames=33."),
    ({"num_inference_steps": 21}, "num_inference_steps must be 20 or less here"),
    ({"width": 50}, "width must be a multiple of 16, 16 to 96, got 50. .* width=48."),
    ({"width": 95}, "width must be a multiple of 16, 16 to 96, got 95. .* width=96."),
    ({"num_frames": 30}, "num_frames must be 1 plus a multiple of 4, 1 to 33, got 30."),
    ({"image_path": "/etc/passwd"}, "'/etc/passwd' is no image"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_made_is_refused_before_it_is_queued(studio, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        studio.submit(ask(**changes))


def test_a_plan_that_is_refused_names_the_limits_of_the_page(studio) -> None:
    with pytest.raises(ValueError, match="height must be a multiple of 16, 16 to 96, got 50"):
        studio.plan(ask(height=50))


def test_a_plan_is_for_a_gpu_also_where_the_model_is_placed_on_a_cpu(studio) -> None:
    request = ask(num_inference_steps=8)
    end_of(studio, studio.submit(request))
    assert not next(studio.module.transformer.parameters()).is_meta, "placed on the CPU"
    assert studio.module.transformer.dtype is torch.float32
    assert plan_text(studio.plan(request)) == plan_text(make_plan("tiny-shapes", request.params))
    assert sum(studio.weights_on_cpu().values()) == sum(
        p.nbytes for model in studio.module.children() for p in model.parameters()
    )


def test_a_full_queue_takes_no_more_until_one_has_gone(studio) -> None:
    jobs = [studio.submit(ask(num_inference_steps=20, width=96, height=96))]
    wait_until(lambda: studio.look(jobs[0]).state is JobState.RUNNING)
    jobs += [studio.submit(ask()), studio.submit(ask())]
    with pytest.raises(FullQueueError, match="Try again when one is done"):
        studio.submit(ask())
    for job in jobs:
        studio.cancel(job)
    assert {end_of(studio, job).state for job in jobs} == {JobState.CANCELLED}


def test_a_budget_that_asks_for_a_gpu_is_refused_in_the_words_of_the_page(studio) -> None:
    assert not studio.has_gpu
    with pytest.raises(ValueError, match="this machine has no GPU") as refused:
        studio.submit(replace(ask(), budget_gib="auto"))
    assert explain(refused.value).endswith("no GPU. Enter a number of GiB.")


def test_a_budget_is_kept_by_the_plan_and_a_tiny_one_names_the_smallest(studio) -> None:
    request = ask()
    assert "of a budget of 5.00" in plan_text(studio.plan(replace(request, budget_gib=5.0)))
    for ask_for in (studio.plan, studio.submit):
        with pytest.raises(ValueError, match="the smallest possible is"):
            ask_for(replace(request, budget_gib=0.01))
    with pytest.raises((TypeError, ValueError), match="gpu_memory_budget"):
        studio.submit(replace(request, budget_gib=-1.0))


def test_the_budget_that_the_page_was_started_with_is_checked_before_the_run(
    studio, monkeypatch
) -> None:
    tight = replace(studio.model, config=OffloadConfig(gpu_memory_budget=0.01))
    monkeypatch.setattr(studio, "model", tight)
    with pytest.raises(ValueError, match="the smallest possible is"):
        studio.submit(ask())


def test_another_budget_places_the_model_anew(studio, monkeypatch) -> None:
    job, first = studio.submit(ask(num_frames=9)), studio._generator
    end_of(studio, job)
    monkeypatch.setattr(studio, "model", replace(studio.model, device_type="cuda"))
    made = []
    monkeypatch.setattr(studio, "_open", lambda config: made.append(config) or first)
    monkeypatch.setattr(first, "close", lambda: None)
    job = Job(replace(ask(), budget_gib=5.0))
    job.start()
    studio._place_for(job)
    studio._place_for(job)
    assert [config.gpu_memory_budget for config in made] == [5.0]
    studio._placed = studio.model.config


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("t2v", False, False),
        ("ti2v", True, False),
        ("i2v_clip", True, False),
        ("first_last", True, True),
    ],
)
def test_the_page_is_told_which_pictures_a_model_takes(
    checkpoint, tmp_path, kind, first, last
) -> None:
    folder = shutil.copytree(checkpoint(kind), tmp_path / kind)
    (folder / "sampling.json").write_text('{"height": 32, "width": 32, "num_frames": 5}')
    images = WantedImages.of(VideoModule.from_pretrained(folder, device_type="cpu"))
    assert (images.first, images.last) == (first, last)
