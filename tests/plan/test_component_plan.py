"""What the plan says is where, against what the callbacks do."""

import pytest
import torch

from fastvideo_lightning import OffloadConfig, VideoModule
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.generator.placements import make_placements
from fastvideo_lightning.offload.registry import engine_of
from fastvideo_lightning.plan import make_plan
from fastvideo_lightning.plan.component_plan import (
    ON_CALL,
    ON_CPU,
    RESIDENT,
    place_component,
    place_components,
    slot_size,
)
from fastvideo_lightning.plan.sizes import measure_components, reserved_bytes
from fastvideo_lightning.plan.workload import Workload

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["t2v", "i2v_clip"])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"dit_resident_blocks": 1},
        {"text_encoder_layerwise_offload": True},
        {"text_encoder_layerwise_offload": True, "num_slots": 3},
        {"num_slots": 1},
        {"dit_layerwise_offload": False, "text_encoder_cpu_offload": False},
    ],
)
def test_slots_and_streamed_bytes_are_those_of_the_engine(kind, flags, checkpoint):
    config = OffloadConfig(**flags)
    # As a run on this device: dtypes are those of the file, and the engine copies inline.
    module = VideoModule.from_pretrained(checkpoint(kind), dtype="fp32", device_type="cpu")
    components = measure_components(module)
    subject = Workload(components, *(None,) * 4)
    slots = slot_size(subject, config)
    placed = {size.fqn: place_component(size, config, slots) for size in components}
    for callback in make_placements(module, config, on_gpu=True):
        if isinstance(callback, Placement):
            callback.attach(module, CPU)
    engine = engine_of(module, CPU)
    # A layout for the CPU packs tensors at other distances, up to 512 bytes each.
    assert engine.device_bytes == pytest.approx(
        config.num_slots * slots, abs=config.num_slots * 512 * 40
    )
    for fqn, part in placed.items():
        units = [unit for unit in engine.units if unit.fqn.partition(".")[0] == fqn]
        num_tensors = sum(len(unit.bindings) for unit in units)
        expected = sum(unit.size_bytes for unit in units)
        assert part.streamed_bytes == pytest.approx(expected, abs=512 * num_tensors)
        assert bool(part.streamed_bytes) == bool(units)


def test_words_say_where_each_component_is(checkpoint):
    module = VideoModule.from_pretrained(checkpoint("i2v_clip"))
    sizes = {size.fqn: size for size in measure_components(module)}

    def where(fqn, **flags):
        return place_component(sizes[fqn], OffloadConfig(**flags), 0).where

    assert where("transformer") == "streamed"
    assert where("transformer", dit_layerwise_offload=False) == RESIDENT
    assert where("text_encoder") == ON_CPU
    assert where("text_encoder", text_encoder_cpu_offload=False) == RESIDENT
    assert where("vae") == where("image_encoder") == ON_CALL
    assert where("vae", vae_cpu_offload=False) == RESIDENT


def test_measuring_reads_no_weight(checkpoint):
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    Workload.of(module, SamplingParams(num_frames=5, height=32, width=48))
    assert all(weight.is_meta for weight in module.parameters())


def test_tied_weights_are_weighed_once(checkpoint):
    module = VideoModule.from_pretrained(checkpoint("t2v"), dtype="fp32")
    encoder = next(s for s in measure_components(module) if s.fqn == "text_encoder")
    unique = {id(weight): weight for weight in module.text_encoder.parameters()}
    total = sum(weight.numel() * 4 for weight in unique.values())
    assert total <= encoder.whole.size_bytes <= total + 512 * len(unique)


def test_the_allocators_rounding_is_counted():
    mib = 1 << 20
    assert reserved_bytes([11 * mib]) == 12 * mib
    assert reserved_bytes([52 * mib]) == 52 * mib
    assert 9 * mib < reserved_bytes([9 * mib]) < 20 * mib
    assert reserved_bytes([1]) >= 512


def test_resident_blocks_of_experts_that_take_turns_are_counted_once(checkpoint):
    module = VideoModule.from_pretrained(checkpoint("two_experts"))
    subject = Workload.of(module, SamplingParams(num_frames=5, height=32, width=48))
    few = place_components(subject, OffloadConfig(), 0)
    many = place_components(subject, OffloadConfig(dit_resident_blocks=2), 0)
    more = {a.fqn: b.device_bytes - a.device_bytes for a, b in zip(few, many, strict=True)}
    blocks = {size.fqn: size.blocks for size in subject.components}
    assert subject.takes_turns
    assert sorted((more["transformer"], more["transformer_2"])) == [
        0,
        sum(block.kept_bytes for block in blocks["transformer"]),
    ]
    video = SamplingParams(num_frames=5, height=32, width=48)
    plans = [make_plan(module, video, flags={"dit_resident_blocks": n}) for n in (0, 2)]
    said = ["transformer and transformer_2 take turns" in str(plan) for plan in plans]
    assert said == [False, True]
