"""What callbacks hear of a run in which a video was made again with less on the device."""

import pytest
from support.checkpoints import PROMPT, SIZE
from support.running_out import ALL_RESIDENT, run_out_in_second_video

from fastvideo_lightning import OffloadConfig, VideoGenerator
from fastvideo_lightning.callbacks import MemoryReport

PROMPTS = [PROMPT, "a green square", "a red square"]


@pytest.fixture
def make_batch(checkpoint, on_gpu, tmp_path):
    """Make a batch, placed as on a GPU, whose second video finds no memory at first."""

    def make(callback):
        with VideoGenerator.from_pretrained(
            checkpoint("t2v"), accelerator="cpu", on_oom="replan", callbacks=[callback]
        ) as generator:
            generator._placing.replace(generator.launch(), OffloadConfig(**ALL_RESIDENT))
            run_out_in_second_video(generator)
            assert len(list(generator.generate_videos(PROMPTS, output_path=tmp_path, **SIZE))) == 3

    return make


class Counting:
    def __init__(self):
        self.heard = []

    def on_predict_start(self, num_batches):
        self.heard.append(f"{num_batches} videos")

    def on_predict_batch_start(self, batch, batch_idx):
        self.heard.append((batch_idx, batch["prompt"]))


def test_videos_are_counted_on_where_one_is_made_again(make_batch):
    counting = Counting()
    make_batch(counting)
    first, second, third = enumerate(PROMPTS)
    assert counting.heard == ["3 videos", first, second, "3 videos", second, third]


def test_a_report_has_the_whole_run_and_the_plan_that_it_ended_with(make_batch):
    report = MemoryReport(plan={"reserved_gib": 99.0, "stages": []}, quiet=True)
    make_batch(report)
    timeline = report.timeline
    first, second, third = PROMPTS
    assert timeline.prompts == [first, second, second, third]
    assert [len(timeline.steps(video)) for video in range(4)] == [2, 0, 2, 2]
    begins = [span.begin_s for span in timeline.spans]
    assert begins == sorted(begins)
    assert timeline.error is None
    assert timeline.plan["reserved_gib"] < 1
    assert timeline.plan["flags"]["vae_cpu_offload"]


def test_a_report_without_a_plan_gets_none(make_batch):
    report = MemoryReport(quiet=True)
    make_batch(report)
    assert report.timeline.plan is None
