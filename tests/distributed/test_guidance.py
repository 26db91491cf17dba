"""Two ranks share the calls of a step with guidance: the bits of one, half of the calls each."""

from pathlib import Path

import pytest
from support.recipes import PICTURES, RECIPES
from support.recipes.runs import write_media

from distributed import guidance_claims as claims
from distributed.ranks import World
from distributed.scripts import run_forked
from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.modules.catalog import UNUSABLE

TYPICAL = ("WanPipeline", "CogVideoXPipeline", "LTXPipeline")
# Both calls of a step are used before there is another, and nothing else is at work in them.
SHARES = ("WanPipeline",)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.mark.parametrize("how", ["gather", "local", "resident"])
def test_after_the_first_step_each_rank_computes_one_of_two_calls(world: World, how):
    world.run(claims.each_computes_one_of_two_calls, how)


@pytest.mark.parametrize(("num_calls", "computed"), [(1, 1), (3, 2), (4, 2)])
def test_any_number_of_calls_in_a_step_is_right(world: World, num_calls, computed):
    assert set(world.run(claims.any_number_of_calls_is_right, num_calls)) == {computed}


def test_where_there_is_one_call_a_step_it_is_told_once(world: World):
    for messages in world.run(claims.one_call_a_step_is_told_once):
        assert len(messages) == 1
        assert messages[0].startswith("guidance_parallel=2 has no effect on The module: ")


@pytest.mark.parametrize("how", ["local", "resident"])
def test_an_exception_in_one_rank_is_one_in_both_and_then_all_is_right(world: World, how):
    if world.size > 2:
        pytest.skip("the other pair has none")
    world.run(claims.an_exception_in_one_is_one_in_both, how)


def test_a_result_that_one_rank_uses_before_the_other_is_an_error_of_both(world: World):
    if world.size > 2:
        pytest.skip("the other pair has none")
    world.run(claims.a_use_on_one_rank_only_is_an_error_of_both)


@pytest.mark.parametrize("what", claims.LEAVES)
def test_calls_that_leave_something_behind_are_made_by_both(world: World, what):
    world.run(claims.calls_that_leave_something_behind_are_made_by_both, what)


@pytest.mark.parametrize("view", ["steps", "transposed", "expanded", "empty", "bf16", "bool"])
def test_a_result_may_have_any_strides_and_dtype(world: World, view):
    world.run(claims.a_result_may_have_any_strides, view)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_pair_is_one_worker_that_makes_each_video_of_a_batch_once_and_goes_on(tmp_path):
    prompts = ["a red circle moves left", "a blue square moves up", "a red square moves down"]
    sampling = {"num_inference_steps": 2, "height": 48, "width": 48, "num_frames": 5}
    settings = {"prompts": prompts, "sampling": sampling}
    first, second = run_forked("guidance_script", 2, tmp_path, settings)
    assert first["made"] == [[0, 1, 2], [1]]
    assert second["made"] == [[], []]
    assert first["skipped"] == [0, 2]
    with VideoGenerator.from_pretrained(accelerator="cpu") as generator:
        batch = generator.generate_videos(prompts, output_path=tmp_path / "alone", **sampling)
        alone = [video.frames[:, ::8, ::8].tolist() for video in batch]
    assert first["frames"] == [alone, alone[1:2]]


@pytest.mark.parametrize(
    "name",
    [
        name if name in TYPICAL else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in sorted((RECIPES | PICTURES).keys() - UNUSABLE.keys())
    ],
)
def test_every_pipeline_makes_the_same_on_two_ranks(world: World, name, media):
    num_shared = set(world.run(claims.a_pipeline_makes_the_same, name, media))
    assert len(num_shared) == 1
    assert num_shared != {0} or name not in SHARES
