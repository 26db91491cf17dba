"""One timeline: what a video needs next is on its way before it is called."""

import lightning as L
import numpy as np
import pytest
from support.checkpoints import PROMPT, text_pipeline, transformer

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from fastvideo_lightning.offload.engine import OffloadStats
from fastvideo_lightning.offload.unit import UnitState

BLOCKS = 6
STEPS = 6
SAMPLING = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 3.0}


class StatsPerStep:
    """Notes how many misses and copies there were when each step, and the video, was over."""

    def __init__(self, module: VideoModule) -> None:
        self.module = module
        self.misses: list[int] = []
        self.copies: list[int] = []

    def on_denoise_step_end(self) -> None:
        stats = engine_stats(self.module)
        self.misses.append(stats.misses)
        self.copies.append(stats.copies)

    def on_predict_batch_end(self) -> None:
        self.on_denoise_step_end()


def engine_stats(module: VideoModule) -> OffloadStats:
    from fastvideo_lightning.offload.registry import engine_of

    return engine_of(module, module.execution_device).stats


def two_experts() -> VideoModule:
    experts = {
        name: transformer(seed=seed, num_layers=BLOCKS)
        for seed, name in enumerate(("transformer", "transformer_2"))
    }
    pipeline = text_pipeline(**experts, boundary_ratio=0.9)
    return VideoModule.from_pipeline(pipeline)


def run(module: VideoModule, callbacks: list[object], *, videos: int = 1, steps: int = STEPS):
    fabric = L.Fabric(
        accelerator="cpu", devices=1, strategy=HostResidentStrategy(), callbacks=callbacks
    )
    fabric.launch()
    prompts = PromptDataset([PROMPT] * videos, seed=3, num_inference_steps=steps, **SAMPLING)
    made = PredictLoop(fabric).run(fabric.setup(module), prompts, return_predictions=True)
    return fabric, made


def placements(**options: object) -> list[object]:
    return [
        LayerwiseOffload("text_encoder"),
        LayerwiseOffload("transformer", **options),
        LayerwiseOffload("transformer_2", **options),
        ModelOffload("vae"),
    ]


@pytest.mark.parametrize("options", [{}, {"resident_blocks": 2, "share_residents": True}])
def test_after_the_first_video_nothing_is_waited_for_that_was_not_on_its_way(options):
    module = two_experts()
    stats = StatsPerStep(module)
    run(module, [*placements(**options), stats], videos=3)
    misses = np.array(stats.misses).reshape(3, -1)[:, -1]
    copies = np.array(stats.copies).reshape(3, -1)[:, -1]
    assert misses[2] == misses[0]
    residents = 2 * options.get("resident_blocks", 0)
    streamed = (2 * BLOCKS - residents) * STEPS  # two passes a step
    assert copies[2] - copies[1] == 2 + streamed + residents + 1  # encoder before, decoder after


def test_the_first_video_foresees_the_hand_over_and_the_decoder_too():
    module = two_experts()
    stats = StatsPerStep(module)
    run(module, [*placements(), stats])
    assert stats.misses[-1] == stats.misses[0]


def test_the_decoder_borrows_a_slot_of_the_blocks_where_it_fits():
    module = two_experts()
    vae = ModelOffload("vae")
    seen = []

    class Look:
        def on_denoise_step_end(self, step: int, num_steps: int) -> None:
            unit = vae.attachments[0].first
            engine = vae.attachments[0].engine
            seen.append((unit.state, unit.slot in engine.ring.slots))

    large = LayerwiseOffload("transformer", num_slots=2)
    callbacks = [LayerwiseOffload("text_encoder"), large, LayerwiseOffload("transformer_2")]
    for attachable in callbacks:
        attachable.attach(module, "cpu")
    engine = large.attachments[0].engine
    vae.attach(module, "cpu")
    unit = vae.attachments[0].first
    engine.memory.ring.resize(max(unit.size_bytes, engine.ring.slot_bytes))
    engine.memory.ring_bytes_for = lambda units: engine.ring.slot_bytes
    before = engine.device_bytes
    run(module, [*callbacks, vae, Look()])
    assert seen[-1] == (UnitState.PREFETCHING, True)
    assert engine.device_bytes == before
    engine.check()


@pytest.mark.parametrize("resident_blocks", [1, 3, 6])
def test_experts_that_share_residents_make_the_same_video_in_the_memory_of_one(resident_blocks):
    plain = two_experts()
    _, expected = run(plain, [])
    module = two_experts()
    callbacks = placements(resident_blocks=resident_blocks, share_residents=True)
    _, videos = run(module, callbacks, videos=2)
    assert np.array_equal(videos[0].frames, expected[0].frames)
    engine = callbacks[1].attachments[0].engine
    block = callbacks[1].attachments[0].first.size_bytes
    even = resident_blocks + (BLOCKS - resident_blocks) % 2
    assert engine.memory.resident_slots.size_bytes == even * block
    engine.check()


def test_the_other_experts_residents_come_in_while_the_last_step_of_the_first_computes():
    module = two_experts()
    callbacks = placements(resident_blocks=4, share_residents=True)
    states = {}

    class Look:
        def on_denoise_step_end(self, denoiser: str, following: str) -> None:
            second = callbacks[2].attachments[0].engine.groups[2]
            states[denoiser, following] = {unit.state for unit in second.residents}

    run(module, [*callbacks, Look()], steps=12)
    assert states["transformer", "transformer"] == {UnitState.OFFLOADED}
    assert states["transformer", "transformer_2"] == {UnitState.PREFETCHING}


def test_residents_are_copied_once_per_expert_and_video():
    module = two_experts()
    stats = StatsPerStep(module)
    callbacks = placements(resident_blocks=BLOCKS, share_residents=True)
    run(module, [*callbacks, stats], videos=2)
    videos = np.array(stats.copies).reshape(2, -1)
    encoder_and_vae = 2 + 1
    assert videos[1, -1] - videos[0, -1] == 2 * BLOCKS + encoder_and_vae


def test_another_number_of_steps_costs_a_miss_at_most():
    module = two_experts()
    stats = StatsPerStep(module)
    callbacks = [*placements(), stats]
    fabric, _ = run(module, callbacks)
    before = stats.misses[-1]
    prompts = PromptDataset([PROMPT], seed=3, num_inference_steps=4, **SAMPLING)
    PredictLoop(fabric).run(module, prompts)
    assert stats.misses[-1] <= before + 1
