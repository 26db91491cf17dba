"""Videos by ranks that stream together are those of one process, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.references import sampling_of

from distributed import video_claims as claims
from distributed.ranks import World
from distributed.scripts import run_forked
from fastvideo_lightning import PredictLoop, PromptDataset, VideoGenerator

TYPICAL = ("t2v", "two_experts at home")
CASES = {
    "t2v": {},
    "two_experts": {},
    "two_experts at home": {"resident_blocks": 2, "share_residents": True},
    "i2v_clip": {},
    "tiny-shapes": {"resident_blocks": 2},
}

SMALL = {"num_inference_steps": 1, "height": 48, "width": 48, "num_frames": 9}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [c if c in TYPICAL else pytest.param(c, marks=pytest.mark.exhaustive) for c in CASES],
)
def test_videos_equal_those_made_alone(
    world: World, case: str, checkpoint: Callable[[str], Path], image: Path
) -> None:
    if case == "tiny-shapes":
        small = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}
        folder, sampling = case, small
    else:
        kind = case.partition(" ")[0]
        folder, sampling = checkpoint(kind), sampling_of(kind, {"image": image})
    answers = world.run(
        claims.videos_equal_those_made_alone, folder, sampling, host_memory="pinned", **CASES[case]
    )
    for share, whole in answers:
        assert share <= whole / world.size + 4096


@pytest.mark.slow
@pytest.mark.exhaustive
def test_five_prompts_by_two_processes_are_five_files_and_the_frames_of_one(tmp_path: Path) -> None:
    prompts = [
        "a red circle moves right",
        "a blue square moves up",
        {"prompt": "a green triangle moves left", "num_inference_steps": 2},
        "a red square moves down",
        "a yellow circle moves left",
    ]
    ranks = run_forked("streaming_script", 2, tmp_path, {"prompts": prompts, "sampling": SMALL})
    with VideoGenerator.from_pretrained(accelerator="cpu") as generator:
        videos = PredictLoop(generator._fabric).run(
            generator.module, PromptDataset(prompts, **SMALL), return_predictions=True
        )
    for how in ("gather", "local"):
        assert sorted(i for rank in ranks for i in rank[how]["indices"]) == [0, 1, 2, 3, 4]
        assert len(list((tmp_path / how).glob("*.mp4"))) == 5
        for rank in ranks:
            assert rank[how]["held"] <= rank[how]["whole"] / 2 + 4096
            assert rank[how]["misses"] == 0
        for video in videos:
            assert np.array_equal(np.load(tmp_path / f"{how}-{video.index}.npy"), video.frames)
