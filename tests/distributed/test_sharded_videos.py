"""Videos by ranks that stream together are those of one process, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
from references import sampling_of

from distributed import video_claims as claims
from distributed.ranks import World

CASES = {
    "t2v": {},
    "two_experts": {},
    "two_experts at home": {"resident_blocks": 2, "share_residents": True},
    "i2v_clip": {},
    "tiny-shapes": {"resident_blocks": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
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
