"""lightning.Trainer's predict on several processes."""

import hashlib

import pytest

from distributed.scripts import run_script
from fastvideo_lightning import VideoGenerator

pytestmark = pytest.mark.slow

PROMPTS = ["a red circle moves right", "a blue square moves up", "a green triangle"]


def test_processes_share_the_prompts_and_refuse_a_number_that_would_leave_one_waiting(tmp_path):
    sampling = {"seed": 7, "num_inference_steps": 2}
    settings = {"prompts": PROMPTS, "sampling": sampling}
    reports = run_script("trainer_script.py", 2, tmp_path, settings)
    with VideoGenerator.from_pretrained("tiny-shapes", accelerator="cpu") as generator:
        for index, report in enumerate(reports):
            assert "each needs equally many prompts, got 3 in all" in report["refusal"]
            video = generator.generate_video(
                PROMPTS[index], save_video=False, **{**sampling, "seed": 7 + index}
            )
            expected = hashlib.sha256(video.frames.tobytes()).hexdigest()
            assert report["videos"] == {str(index): expected}
