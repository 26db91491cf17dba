"""How far copies hide: against steps of Wan 14B that were timed on an H200, and by hand."""

import pytest

from fastvideo_lightning import OffloadConfig
from fastvideo_lightning.offload.blocks import resident_positions
from fastvideo_lightning.plan import make_plan
from fastvideo_lightning.plan.plan import plan_text
from fastvideo_lightning.plan.predict import BlockTime, step_time
from tests.plan.test_choose import VIDEO

# 28.11 GB in 40 blocks over 55.4 GB/s; 489.6 ms to compute 17 frames, 88.9 to compute one. Frames,
# slots, resident blocks, ms: `benchmarks/streaming.py` and, with 6 blocks, `benchmarks/plan.py`.
COPY_MS = 28.11e3 / 55.4 / 40
COMPUTE_MS = {17: 489.6 / 40, 1: 88.9 / 40}
TIMED = [
    (17, 2, 0, 508.1),
    (17, 2, 4, 501.6),
    (17, 2, 6, 498.5),
    (17, 2, 20, 489.2),
    (17, 3, 0, 493.9),
    (1, 2, 0, 507.4),
    (1, 2, 4, 456.5),
    (1, 2, 20, 253.6),
    (1, 3, 0, 494.6),
]


def blocks_of(compute, copy, residents, num_slots, num_blocks=40):
    stays = resident_positions(num_blocks, residents, num_slots)
    return [BlockTime(compute, 0.0 if i in stays else copy) for i in range(num_blocks)]


@pytest.mark.parametrize(("frames", "num_slots", "residents", "step_ms"), TIMED)
def test_it_is_what_was_timed_within_half_a_percent(frames, num_slots, residents, step_ms):
    blocks = blocks_of(COMPUTE_MS[frames], COPY_MS, residents, num_slots)
    assert step_time(blocks, num_slots) == pytest.approx(step_ms, rel=0.005)


def test_with_one_slot_nothing_overlaps():
    assert step_time([BlockTime(2.0, 3.0)] * 4, 1) == 20.0


@pytest.mark.parametrize(("compute", "copy", "expected"), [(2.0, 3.0, 12.0), (3.0, 2.0, 12.0)])
@pytest.mark.parametrize("num_slots", [2, 3])
def test_with_more_the_longer_of_the_two_counts(compute, copy, expected, num_slots):
    assert step_time([BlockTime(compute, copy)] * 4, num_slots) == expected


def test_what_a_resident_block_gains_takes_a_third_slot_to_keep():
    two, three = (step_time(blocks_of(10.0, 10.5, 4, slots), slots) for slots in (2, 3))
    assert three == pytest.approx(400.0)
    assert two > 412.0


def test_a_plan_takes_a_third_slot_where_it_is_faster_in_the_same_memory(wan):
    flags = {"text_encoder_cpu_offload": True, "vae_cpu_offload": True}
    plan = make_plan(wan("wan-14b"), VIDEO, budget_gib=8, card="H200", flags=flags)
    assert plan.flags["num_slots"] == 3
    assert "--num-slots 3" in plan.command_line
    two = make_plan(
        wan("wan-14b"), VIDEO, budget_gib=8, card="H200", flags={**flags, "num_slots": 2}
    )
    assert plan.time_s < two.time_s
    assert plan.reserved_bytes <= 8 << 30
    few = make_plan(
        wan("wan-14b"), VIDEO.merge(num_frames=1), budget_gib=8, card="H200", flags=flags
    )
    assert few.flags["num_slots"] == 2  # the link decides: a resident block is worth more
    assert "--num-slots" not in few.command_line


@pytest.mark.parametrize("num_slots", [2, 3])
def test_what_stays_whole_is_not_said_to_stream(num_slots):
    flags = {"num_slots": num_slots}
    plan = make_plan("tiny-shapes", budget_gib=40, card="H200", flags=flags)
    assert not plan.config.dit_layerwise_offload
    assert not plan.config.text_encoder_layerwise_offload


def test_an_encoder_with_fewer_blocks_than_slots_takes_none():
    flags = {"dit_layerwise_offload": False, "text_encoder_layerwise_offload": True}
    slots = [
        make_plan("tiny-shapes", flags={**flags, "num_slots": count}).prediction.slot_bytes
        for count in (2, 3)
    ]
    assert slots[0] > 0 == slots[1]  # it has two


def test_slots_are_counted_and_named(wan):
    plans = [
        make_plan(wan("wan-14b"), VIDEO, flags=OffloadConfig(num_slots=count)) for count in (2, 3)
    ]
    slot = plans[0].prediction.slot_bytes
    more = plans[1].reserved_bytes - plans[0].reserved_bytes
    assert more == pytest.approx(2 * slot, rel=0.05)  # one slot, one block that is left over
    assert "3 slots that blocks stream through" in plan_text(plans[1])


def test_flags_without_effect_are_said_and_what_is_to_be_copied_is_one_line():
    flags = {"num_slots": 3, "dit_layerwise_offload": False, "dit_resident_blocks": 3}
    plan = make_plan("tiny-shapes", budget_gib=40, card="H200", flags=flags)
    assert "num_slots=3 has no effect: nothing streams." in plan.notes
    assert "dit_resident_blocks has no effect: all of the denoiser is resident." in plan.notes
    assert f"\nFlags: {plan.command_line}" in plan_text(plan)
    assert len(plan.command_line) > 100
    assert not any("effect" in note for note in make_plan("tiny-shapes").notes)


def test_an_encoder_of_which_nothing_streams_is_resident():
    flags = {"num_slots": 3, "text_encoder_layerwise_offload": True}
    plan = make_plan("tiny-shapes", flags=flags)
    where = {part.fqn: part.where for part in plan.prediction.components}
    assert where["text_encoder"] == "resident"
