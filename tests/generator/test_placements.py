"""A budget kept by the generator. There is no GPU here: weights are placed as on one."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.running_out import make, make_generator

from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule, make_plan
from fastvideo_lightning.callbacks import LayerwiseOffload, MemoryBudget
from fastvideo_lightning.generator import placements
from fastvideo_lightning.generator.placements import ModelPlacement
from fastvideo_lightning.plan import BudgetTooSmallError, find_card, planner


@pytest.fixture(autouse=True)
def _on_a_card(on_gpu, monkeypatch):
    monkeypatch.setattr(planner, "find_machine", lambda: find_card("RTX 4090"))


def test_the_plan_is_what_is_placed_and_the_pixels_are_the_same(checkpoint, caplog):
    with make_generator(checkpoint) as generator:
        expected = make(generator)
        assert generator.plan(**SIZE) is None
    caplog.set_level(logging.INFO, logger="fastvideo_lightning")
    with make_generator(checkpoint, gpu_memory_budget=4) as generator:
        video = make(generator)
        plan = generator.plan(**SIZE)
        assert generator.config == plan.config
        assert not generator.config.dit_layerwise_offload
        budgets = [c for c in generator._fabric._callbacks if isinstance(c, MemoryBudget)]
    assert [budget.budget_gib for budget in budgets] == [4]
    assert np.array_equal(video.frames, expected.frames)
    assert "Planned for 4 GiB: dit_layerwise_offload=False" in caplog.text


@pytest.mark.parametrize("free_elsewhere_gib", [3, 8])
def test_several_ranks_plan_for_what_is_free_on_the_fullest_gpu(
    checkpoint, monkeypatch, free_elsewhere_gib
):
    gib = 1 << 30
    monkeypatch.setattr(placements, "find_budget", lambda *_, **__: 4 * gib)
    elsewhere = torch.tensor(free_elsewhere_gib * gib, dtype=torch.float64)

    def all_reduce(mine, *, reduce_op):
        assert reduce_op == "min"
        return torch.minimum(mine, elsewhere)

    fabric = SimpleNamespace(  # of another rank there is only what it would say
        device=torch.device("cpu"), all_reduce=all_reduce, broadcast=lambda x: x, _callbacks=[]
    )
    module = VideoModule.from_pretrained(checkpoint("t2v"), device_type="cpu")
    made = ModelPlacement(
        module, OffloadConfig(gpu_memory_budget="auto"), on_gpu=True, num_processes=2
    )
    made.begin(fabric, SamplingParams(**SIZE), at=0)
    assert made.plan.budget_bytes == min(4, free_elsewhere_gib) * gib
    assert made.plan_for(SamplingParams(**SIZE)).budget_bytes == made.plan.budget_bytes
    assert "num_gpus=2: the GPU memory is that of each GPU" in made.plan.notes[-2]


def test_flags_that_were_passed_stay_as_they_are(checkpoint):
    with make_generator(checkpoint, gpu_memory_budget=4, dit_layerwise_offload=True) as generator:
        make(generator)
        assert generator.config.dit_layerwise_offload
        assert not generator.config.vae_cpu_offload


def test_an_impossible_video_is_refused_before_any_work_and_the_next_is_made(checkpoint):
    with make_generator(checkpoint, gpu_memory_budget=0.2) as generator:
        work = []
        generator.module.text_encoder.register_forward_pre_hook(lambda *_: work.append(1))
        large = {**SIZE, "height": 512, "width": 512, "num_frames": 81}
        with pytest.raises(BudgetTooSmallError, match="smallest possible"):
            make(generator, **large)
        assert not work
        assert make(generator).frames.shape == (5, 32, 48, 3)


def test_a_video_that_does_not_fit_as_it_is_placed_is_placed_anew(checkpoint):
    with make_generator(checkpoint, gpu_memory_budget=1) as generator:
        make(generator)
        few = generator.config
        assert not few.vae_tiling
        large = {**SIZE, "height": 512, "width": 512, "num_frames": 17}
        plan = generator.plan(**large)
        generator._placing.adapt(generator._fabric, [{"index": 0, "prompt": PROMPT, **large}])
        assert generator.config == plan.config
        assert plan.under(few).reserved_bytes > plan.budget_bytes or generator.config == few
        make(generator)


def test_after_memory_ran_out_later_plans_take_no_more(checkpoint):
    with make_generator(checkpoint, gpu_memory_budget=1, on_oom="replan") as generator:
        make(generator)
        before = generator.config
        failures = [1]

        def fail(*_):
            if failures:
                failures.pop()
                raise torch.OutOfMemoryError("CUDA out of memory.")

        generator.module.transformer.register_forward_pre_hook(fail)
        assert make(generator).num_replans == 1
        tighter = generator.config
        assert tighter != before
        first = make_plan(generator.module, SamplingParams(**SIZE), budget_gib=1)
        assert generator.plan(**SIZE).reserved_bytes < first.reserved_bytes
        assert make(generator).num_replans == 0
        assert generator.config == tighter


def test_auto_makes_calls_in_pairs_for_the_videos_that_are_sooner_by_it(checkpoint, monkeypatch):
    asked = []

    def make_plan(module, params, *, flags, num_gpus):
        asked.append(flags.pair_guidance)
        is_on = params is None or (params.height or 32) < 48
        return SimpleNamespace(config=replace(flags, pair_guidance=is_on))

    monkeypatch.setattr(placements, "make_plan", make_plan)
    with make_generator(checkpoint, pair_guidance="auto") as generator:

        def streamed():
            (found,) = (c for c in generator._fabric._callbacks if isinstance(c, LayerwiseOffload))
            return found

        small = make(generator)
        first = streamed()
        assert first.pair_guidance
        assert np.array_equal(make(generator).frames, small.frames)
        assert streamed() is first
        make(generator, height=64)
        assert not streamed().pair_guidance
        assert generator.config.pair_guidance is False
        assert np.array_equal(make(generator).frames, small.frames)
        assert streamed().pair_guidance
    assert set(asked) == {"auto"}


def test_auto_is_off_where_the_machine_is_not_known(checkpoint, monkeypatch):
    monkeypatch.setattr(planner, "find_machine", lambda: None)
    with make_generator(checkpoint, pair_guidance="auto") as generator:
        make(generator)
        assert generator.config.pair_guidance is False
