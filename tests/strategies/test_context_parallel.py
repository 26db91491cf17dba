import re

import pytest
from torch import nn

from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule
from fastvideo_lightning.strategies import check_context, check_guidance
from fastvideo_lightning.strategies.context_parallel import ContextParallel


@pytest.fixture(scope="module")
def tiny():
    return VideoModule.from_pretrained("tiny-shapes", device_type="cpu")


@pytest.mark.parametrize(
    ("size", "num_processes", "message"),
    [
        (3, 4, r"does not divide the 4 attention heads of transformer\. Pass context_parallel=2"),
        (8, 8, r"does not divide the 4 attention heads of transformer\. Pass context_parallel=4"),
        (3, 3, r"does not divide the 4 attention heads of transformer\. Pass context_parallel=1"),
    ],
)
def test_what_does_not_divide_names_the_nearest_that_does(tiny, size, num_processes, message):
    with pytest.raises(ValueError, match=message):
        check_context(tiny, size, num_processes)


@pytest.mark.parametrize(
    ("size", "num_processes", "message"),
    [
        (2, 1, "2 processes, got 1 process (num_gpus=1). Pass num_gpus=2, or context_parallel=1."),
        (2, 3, "2 processes, got 3 processes (num_gpus=3). Pass num_gpus=4, or context_parallel=1"),
        (4, 6, "4 processes, got 6 processes (num_gpus=6). Pass num_gpus=8, or context_parallel=2"),
    ],
)
def test_too_few_processes_name_the_next_multiple_and_the_nearest_size(
    tiny, size, num_processes, message
):
    with pytest.raises(ValueError, match=re.escape(f"={size} needs a multiple of {message}")):
        check_context(tiny, size, num_processes)


@pytest.mark.parametrize(("size", "num_processes"), [(1, 3), (2, 2), (2, 4), (4, 8)])
def test_what_divides_is_accepted(tiny, size, num_processes):
    check_context(tiny, size, num_processes)


def test_a_module_without_denoisers_is_refused_by_its_class():
    with pytest.raises(TypeError, match="splits the denoisers of a VideoModule, got Linear"):
        check_context(nn.Linear(2, 2), 2, 2)


def test_a_denoiser_that_cannot_be_split_is_named(tiny, monkeypatch):
    monkeypatch.setattr(tiny.transformer, "_cp_plan", None)
    with pytest.raises(ValueError, match="transformer, a WanTransformer3DModel, is none"):
        check_context(tiny, 2, 2)


@pytest.mark.parametrize(
    ("size", "sampling", "nearest"),
    [
        (4, {"height": 48, "width": 48, "num_frames": 17}, None),
        (8, {"height": 48, "width": 48, "num_frames": 17}, ["num_frames=21", "height=64"]),
        (5, {"height": 64, "width": 80, "num_frames": 17}, None),
        (3, {"height": 64, "width": 64, "num_frames": 17}, ["num_frames=21", "height=48"]),
    ],
)
def test_tokens_that_do_not_divide_name_the_nearest_sizes_that_do(
    tiny, monkeypatch, size, sampling, nearest
):
    monkeypatch.setattr(tiny, "context_parallel", size)
    params = SamplingParams(**sampling)
    if nearest is None:
        tiny.resolve_sampling(params)
        return
    with pytest.raises(ValueError, match=f"context_parallel={size} does not divide") as caught:
        tiny.resolve_sampling(params)
    for option in nearest:
        assert option in str(caught.value)
        name, value = option.split("=")
        tiny.resolve_sampling(params.merge(**{name: int(value)}))


@pytest.mark.parametrize(
    ("flags", "num_processes", "message"),
    [
        ({}, 1, "2 needs a multiple of 2 processes, got 1 process (num_gpus=1). Pass num_gpus=2"),
        ({}, 3, "2 needs a multiple of 2 processes, got 3 processes (num_gpus=3). Pass num_gpus=4"),
        (
            {"context_parallel": 2},
            6,
            "2 with context_parallel=2 needs a multiple of 4 processes, got 6 processes "
            "(num_gpus=6). Pass num_gpus=8",
        ),
    ],
)
def test_too_few_processes_for_two_branches_name_the_next_multiple(flags, num_processes, message):
    message = f"guidance_parallel={message}, or guidance_parallel=1."
    with pytest.raises(ValueError, match=re.escape(message)):
        check_guidance(OffloadConfig(guidance_parallel=2, **flags), num_processes)
    check_guidance(OffloadConfig(guidance_parallel=2, **flags), 8)


def test_branches_lie_behind_each_other_and_make_one_video():
    context = ContextParallel(2, num_branches=2)
    replicas = [context.replica(rank, 8) for rank in range(8)]
    assert [replica.index for replica in replicas] == [0] * 4 + [1] * 4
    assert [rank for rank, replica in enumerate(replicas) if replica.is_first] == [0, 4]
