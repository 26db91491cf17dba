"""Every diffusers pipeline that returns frames can be planned, if only roughly."""

import math

import pytest
from support.recipes import RECIPES, families

from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule
from fastvideo_lightning.modules.catalog import UNUSABLE
from fastvideo_lightning.plan import find_card
from fastvideo_lightning.plan.choose import choose
from fastvideo_lightning.plan.machine import GIB
from fastvideo_lightning.plan.predict import predict
from fastvideo_lightning.plan.workload import Workload


@pytest.mark.parametrize("name", families(RECIPES.keys() - UNUSABLE.keys()))
def test_it_has_a_plan_with_finite_memory_and_time(name):
    module = VideoModule.from_pipeline(RECIPES[name].build())
    subject = Workload.of(module, SamplingParams(height=32, width=32, num_frames=5))
    card = find_card("RTX 4090")
    chosen = choose(subject, OffloadConfig(), card, 20 * GIB)
    streamed = predict(subject, OffloadConfig(), card)
    assert 0 < streamed.reserved_bytes < 20 * GIB
    assert math.isfinite(chosen.time_s)
    assert 0 < chosen.time_s <= streamed.time_s
    assert {part.fqn for part in chosen.components} == dict(module.named_children()).keys()
