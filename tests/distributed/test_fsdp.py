"""FSDP over two gloo processes: the frames of one process, half of the weights in each."""

import numpy as np
import pytest
from checkpoints import PROMPT
from references import SEED, kind_of, make_plain_frames, sampling_of

from distributed.scripts import run_script
from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator

CASES = ["t2v", "two_experts", "ti2v", "i2v_clip"]
PROMPTS = [
    "a red circle moves right",
    "a blue square moves up",
    {"prompt": "a green triangle moves left", "num_inference_steps": 3},
    "a red square moves down",
    "a yellow circle moves left",
]


@pytest.fixture(scope="module")
def fsdp(checkpoint, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    cases = {
        case: (
            checkpoint(kind_of(case)),
            {"prompt": PROMPT, "seed": SEED, **sampling_of(case, images)},
        )
        for case in CASES
    }
    return folder, run_script("fsdp_world.py", 2, folder, {"cases": cases, "prompts": PROMPTS})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_both_ranks_make_the_frames_of_plain_diffusers(fsdp, checkpoint, images, case):
    folder, _ = fsdp
    expected = make_plain_frames(checkpoint(kind_of(case)), sampling_of(case, images))
    for rank in range(2):
        assert np.array_equal(np.load(folder / f"{case}-{rank}.npy"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_rank_holds_and_reads_half(fsdp, case):
    _, ranks = fsdp
    for report in ranks:
        # Rows that do not divide go to the first rank: its share is a little larger.
        assert abs(report[case]["local"] / report[case]["whole"] - 0.5) < 0.1
        assert report[case]["other"] == 0
        assert report[case]["read"] == report[case]["local"]
    assert sum(r[case]["local"] for r in ranks) == ranks[0][case]["whole"]


@pytest.mark.slow
def test_a_second_video_is_the_same_and_no_forward_is_kept_for_a_backward(fsdp):
    _, ranks = fsdp
    for report in ranks:
        for case in CASES:
            assert report[case]["repeats"]
            assert report[case]["kept_forwards"] == 0


@pytest.mark.slow
def test_five_prompts_on_two_ranks_are_five_files_and_frames_of_one_process(fsdp):
    folder, ranks = fsdp
    assert sorted(ranks[0]["prompts"] + ranks[1]["prompts"]) == [0, 1, 2, 3, 4]
    files = sorted(folder.glob("videos/*"))
    assert len(files) == 5
    assert all(file.suffix == ".mp4" and file.stat().st_size for file in files)
    with VideoGenerator.from_pretrained(accelerator="cpu") as generator:
        generator.setup()
        videos = PredictLoop(generator._fabric).run(
            generator.module, PromptDataset(PROMPTS, num_inference_steps=2), return_predictions=True
        )
    for video in videos:
        assert np.array_equal(np.load(folder / f"prompt-{video.index}.npy"), video.frames)
