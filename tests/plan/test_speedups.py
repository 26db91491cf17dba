"""What compiling, caches and quantization do to a plan, against what was measured or counted."""

import copy
import gc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.checkpoints import SIZE

from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule
from fastvideo_lightning.modules.acceleration import accelerate
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.offload.coding.coded import STAGING_BYTES
from fastvideo_lightning.plan import find_card, make_plan
from fastvideo_lightning.plan.choose import settle_pairs
from fastvideo_lightning.plan.cost import under_flags
from fastvideo_lightning.plan.predict import predict
from fastvideo_lightning.plan.sizes import measure_components
from fastvideo_lightning.plan.workload import Workload
from tests.plan.measured import COMPILED, HELD_BEFORE, RESIDENT

NAMES = ("frames", "resident_blocks", "compiles", "step_ms", "reserved_gb")


def predict_compiled(module, frames, resident_blocks):
    params = SamplingParams(height=480, width=832, num_frames=frames, num_inference_steps=1)
    subject = Workload.of(module, params.merge(guidance_scale=1.0))
    denoiser = tuple(s for s in subject.components if s.role is Role.DENOISER)
    config = OffloadConfig(compile=True, dit_layerwise_offload=resident_blocks is not RESIDENT)
    return predict(replace(subject, components=denoiser), config, find_card("H200")).stages[1]


@pytest.mark.parametrize(NAMES, [row for row in COMPILED if row[3] is not None])
def test_the_time_of_a_compiled_step_is_within_15_percent(
    frames, resident_blocks, compiles, step_ms, reserved_gb, wan
):
    stage = predict_compiled(wan("wan-1.3b"), frames, resident_blocks)
    assert stage.time_s * 1e3 == pytest.approx(step_ms, rel=0.15)


@pytest.mark.parametrize(NAMES, COMPILED)
def test_a_compiled_step_takes_no_more_memory_than_planned(
    frames, resident_blocks, compiles, step_ms, reserved_gb, wan
):
    stage = predict_compiled(wan("wan-1.3b"), frames, resident_blocks)
    assert reserved_gb * 1e9 <= stage.reserved_bytes - HELD_BEFORE


@pytest.mark.parametrize(NAMES, COMPILED)
def test_nor_less_than_a_tenth_below_it(
    frames, resident_blocks, compiles, step_ms, reserved_gb, wan, request
):
    if not compiles and resident_blocks is not RESIDENT:
        reason = "missed: the 120 MiB of compiling are planned where the kernels were ready, too"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    stage = predict_compiled(wan("wan-1.3b"), frames, resident_blocks)
    assert stage.reserved_bytes - HELD_BEFORE <= 1.1e9 * reserved_gb


def storages() -> dict[int, int]:
    """Bytes of every tensor's storage that somebody holds, by address."""
    gc.collect()
    held = {}
    for one in gc.get_objects():
        if type(one) not in (torch.Tensor, torch.nn.Parameter) or one.is_meta:
            continue
        with suppress(RuntimeError):  # what a compiler or a wrapper works with has no bytes
            held[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return held


@pytest.mark.parametrize("cache", ["first_block", "pyramid", "taylorseer"])
def test_what_a_cache_keeps_is_what_diffusers_hooks_hold(cache, checkpoint, monkeypatch):
    module = VideoModule.from_pretrained(checkpoint("t2v"), dtype="fp32", device_type="cpu")
    size = next(s for s in measure_components(module) if s.role is Role.DENOISER)
    subject = Workload.of(module, SamplingParams(**SIZE, guidance_scale=3.0))
    planned = under_flags(subject.work[size.fqn], OffloadConfig(cache=cache)).kept_bytes
    model = module.transformer.to_empty(device="cpu")
    config = model.config
    for weight in model.parameters():
        weight.data.fill_(0.01)
    moment = [1000]
    now = property(lambda _: moment[0])
    monkeypatch.setattr(type(module.pipeline), "current_timestep", now)
    turn_off = accelerate(module, OffloadConfig(cache=cache))
    frames, height, width = (SIZE["num_frames"] - 1) // 4 + 1, SIZE["height"], SIZE["width"]
    inputs = {
        "hidden_states": torch.randn(1, config.in_channels, frames, height // 8, width // 8),
        "encoder_hidden_states": torch.randn(1, 512, config.text_dim),
    }
    before = storages()
    with torch.no_grad():
        for step in range(6):
            moment[0] = 700 - 60 * step
            for prompt in ("cond", "uncond"):
                with model.cache_context(prompt):
                    model(timestep=torch.tensor([float(moment[0])]), **inputs)
    held = sum(size for place, size in storages().items() if place not in before)
    turn_off()
    # The plan is for bf16, and this ran in fp32, with a quarter of the usual latent channels.
    assert 2 * planned == pytest.approx(held * (4 if cache == "taylorseer" else 1), rel=0.01)


def test_what_a_cache_keeps_is_in_the_reserved_memory(wan):
    video = SamplingParams(height=480, width=832, num_frames=81)
    without = make_plan(wan("wan-14b"), video, card="H100")
    cached = make_plan(wan("wan-14b"), video, card="H100", flags={"cache": "pyramid"})
    more = cached.prediction.stages[1].reserved_bytes - without.prediction.stages[1].reserved_bytes
    kept = 40 * 32760 * 5120 * 2
    assert kept <= more <= 1.06 * kept


@pytest.mark.parametrize(("num_frames", "share"), [(1, 0.5), (81, 1.0)])
def test_a_pair_of_calls_copies_once_and_computes_twice(wan, num_frames, share):
    video = SamplingParams(height=480, width=832, num_frames=num_frames)
    apart, paired = (
        make_plan(wan("wan-14b"), video, card="H100", flags={"pair_guidance": on}).prediction.stages
        for on in (False, True)
    )
    assert paired[1].time_s == pytest.approx(share * apart[1].time_s, rel=0.03)
    assert paired[1].compute_s == pytest.approx(apart[1].compute_s)
    assert paired[1].moved_bytes == pytest.approx(apart[1].moved_bytes / 2, rel=0.01)
    more = paired[1].reserved_bytes - apart[1].reserved_bytes
    hidden = 2 * 5120 * (32760 if num_frames == 81 else 1560)
    assert hidden <= more <= 1.2 * hidden


@pytest.mark.parametrize(("num_frames", "is_on"), [(1, True), (81, False)])
@pytest.mark.parametrize("budget_gib", [None, 12])
def test_auto_pairs_calls_where_bytes_set_the_pace(wan, num_frames, is_on, budget_gib):
    video = SamplingParams(height=480, width=832, num_frames=num_frames)
    model, flags = wan("wan-14b"), {"pair_guidance": "auto"}
    plan = make_plan(model, video, card="RTX 4090", flags=flags, budget_gib=budget_gib)
    assert plan.config.pair_guidance is is_on
    assert ("--pair-guidance" in plan.command_line) is is_on
    settled = replace(plan.config, pair_guidance=not is_on)
    assert plan.prediction.time_s <= 1.01 * plan.under(settled).time_s


@pytest.mark.parametrize("other", [{"cache": "pyramid"}, {"cuda_graphs": True}])
def test_auto_is_off_beside_what_needs_each_call_by_itself(wan, other):
    video = SamplingParams(height=480, width=832, num_frames=1)
    flags = {"pair_guidance": "auto", **other}
    plan = make_plan(wan("wan-14b"), video, card="RTX 4090", flags=flags)
    assert plan.config.pair_guidance is False


def test_auto_is_off_where_one_more_hidden_state_has_no_room(wan):
    video = SamplingParams(height=480, width=832, num_frames=1)
    flags = OffloadConfig(pair_guidance="auto")
    plan = make_plan(wan("wan-14b"), video, card="RTX 4090", flags=flags)
    for room, is_on in (
        (plan.prediction.reserved_bytes, True),
        (plan.prediction.reserved_bytes - 1, False),
        (None, False),
    ):
        found = settle_pairs(plan.subject, flags, plan.machine, room)
        assert found.config.pair_guidance is is_on


@pytest.mark.parametrize("num_frames", [1, 81])
def test_two_gpus_that_share_the_calls_take_half_of_all_steps_but_the_first(wan, num_frames):
    video = SamplingParams(height=480, width=832, num_frames=num_frames, num_inference_steps=50)
    alone, shared = (
        make_plan(wan("wan-14b"), video, card="H100", flags={"guidance_parallel": n}, num_gpus=n)
        for n in (1, 2)
    )
    share = (0.5 * 49 + 1) / 50
    before, after = (plan.prediction.stages[1] for plan in (alone, shared))
    assert after.time_s == pytest.approx(share * before.time_s)
    assert after.compute_s == pytest.approx(share * before.compute_s)
    assert after.moved_bytes == pytest.approx(share * before.moved_bytes, rel=0.01)
    assert after.reserved_bytes == before.reserved_bytes
    assert "guidance_parallel=2: each of two GPUs makes one" in " ".join(shared.notes)
    assert "videos" not in " ".join(shared.notes)


class StoredAsItRuns(NamedTuple):
    """A weight that a file has in the dtype that it runs in."""

    shape: torch.Size
    stored_dtype: torch.dtype
    path: Path = Path("model.safetensors")
    offset: int = 0

    @property
    def accelerator_dtype(self) -> torch.dtype:
        return self.stored_dtype

    def dtype_on(self, device: torch.device) -> torch.dtype:
        return self.stored_dtype


def on_file(module: VideoModule) -> VideoModule:
    """The module with its weights in files, as `pack` writes them."""
    packed = copy.copy(module)
    packed._weight_sources = {
        name: StoredAsItRuns(weight.shape, weight.dtype)
        for name, weight in module.named_parameters()
    }
    return packed


def test_coded_blocks_travel_in_seven_tenths_of_their_bytes(wan):
    video = SamplingParams(height=480, width=832, num_frames=1)
    module = on_file(wan("wan-14b"))
    plain, coded = (
        make_plan(module, video, card="H100", flags={"weight_compression": how})
        for how in ("none", "lossless")
    )
    stages = [plan.prediction.stages[1] for plan in (plain, coded)]
    assert stages[1].time_s == pytest.approx(0.70 * stages[0].time_s, rel=0.01)
    assert stages[1].moved_bytes == pytest.approx(0.70 * stages[0].moved_bytes, rel=0.01)
    assert stages[1].reserved_bytes - stages[0].reserved_bytes == STAGING_BYTES
    streamed = {part.fqn: part for part in plain.prediction.components}["transformer"]
    less = plain.host_bytes - coded.host_bytes
    assert less == pytest.approx(0.30 * streamed.streamed_bytes, rel=0.01)


def test_of_coded_blocks_a_host_budget_holds_more(wan):
    video = SamplingParams(height=480, width=832, num_frames=81)
    flags = {"host_memory_budget": 12.0, "text_encoder_cpu_offload": False}
    module = on_file(wan("wan-14b"))
    plain, coded = (
        make_plan(module, video, card="H100", flags=flags | {"weight_compression": how})
        for how in ("none", "lossless")
    )
    parts = [
        {part.fqn: part for part in plan.prediction.components}["transformer"]
        for plan in (plain, coded)
    ]
    read = [part.disk_bytes + part.cached_bytes for part in parts]
    assert 0 < read[1] < read[0]
    assert all(part.host_bytes <= 12 << 30 for part in parts)


def test_a_graph_needs_no_launches_and_keeps_its_activations_through_the_decode(wan):
    video = SamplingParams(height=480, width=832, num_frames=1)
    plain, graphed = (
        make_plan(wan("wan-1.3b"), video, card="H100", flags={"cuda_graphs": on})
        for on in (False, True)
    )
    plain, graphed = plain.prediction.stages, graphed.prediction.stages
    assert graphed[1].compute_s < 0.6 * plain[1].compute_s
    more = [b.reserved_bytes - a.reserved_bytes for a, b in zip(plain, graphed, strict=True)]
    assert more[0] == 0
    assert more[1] == more[2] > 0


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_a_plan_for_quantized_weights_has_their_bytes(dtype, checkpoint):
    pytest.importorskip("torchao", reason="quantizing needs torchao: pip install '.[quantized]'")
    folder = checkpoint("t2v")
    planned = make_plan(folder, SamplingParams(**SIZE), dtype=dtype).subject
    real = VideoModule.from_pretrained(folder, dtype=dtype, device_type="cuda")
    sizes = {s.fqn: s for s in measure_components(real)}
    for size in planned.components:
        assert size.whole.size_bytes == sizes[size.fqn].whole.size_bytes, size.fqn
        assert size.whole.num_weights == sizes[size.fqn].whole.num_weights
    assert planned.is_quantized


def test_quantized_weights_halve_what_streams_and_not_what_is_computed(wan):
    video = SamplingParams(height=480, width=832, num_frames=17)
    module = wan("wan-14b")
    plain, narrow = (Workload.of(module, video, quantization=q) for q in (None, "fp8"))
    bytes_ = [s.by_role(Role.DENOISER)[0].whole.size_bytes for s in (plain, narrow)]
    assert bytes_[1] == pytest.approx(bytes_[0] / 2, rel=0.02)
    assert plain.work["transformer"].matmul_flop == narrow.work["transformer"].matmul_flop
    assert (plain.is_quantized, narrow.is_quantized) == (False, True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"cache": "pyramid"}, "what it keeps on the GPU is counted, the time that it saves"),
        ({"compile": True}, "compiling itself"),
        ({"cuda_graphs": True}, "the memory that graphs keep is a first guess"),
        ({"attention_backend": "sage"}, "times are those of torch's own"),
        ({"context_parallel": 2}, "as if each GPU made the whole video"),
        ({"vae_tiling": True}, "changes pixels slightly"),
        ({"text_encoder_cpu_offload": True}, "The CPU is taken to reach 1.5 TFLOP/s"),
    ],
)
def test_what_a_plan_leaves_out_is_said(flags, words, wan):
    plan = make_plan(wan("wan-1.3b"), SamplingParams(num_frames=17), card="H100", flags=flags)
    assert words in " ".join(plan.notes)
    assert words in " ".join(str(plan).split())
    silent = {**dict.fromkeys(flags), "text_encoder_cpu_offload": False}
    other = {k: v for k, v in silent.items() if v is not None}
    bare = make_plan(wan("wan-1.3b"), SamplingParams(num_frames=17), card="H100", flags=other)
    assert bare.notes == []


def test_a_model_whose_formulas_are_not_its_own_says_so(wan):
    module = wan("wan-1.3b")
    subject = replace(Workload.of(module, SamplingParams(num_frames=17)), pipeline="OtherPipeline")
    plan = replace(make_plan(module, SamplingParams(num_frames=17)), subject=subject)
    assert "A first guess: OtherPipeline is no Wan pipeline" in plan.notes[0]


def test_where_launches_set_the_pace_the_flag_that_helps_is_named(wan):
    flags = {"dit_layerwise_offload": False, "text_encoder_cpu_offload": False}

    def notes(frames, **more):
        video = SamplingParams(num_frames=frames)
        return make_plan(wan("wan-1.3b"), video, card="H100", flags={**flags, **more}).notes

    (note,) = notes(1)
    assert "with cuda_graphs=True all steps together would take" in note
    slow, fast = (float(word) for word in (note.split()[-1].rstrip("."), note.split()[-6]))
    assert fast < 0.7 * slow
    assert notes(81) == []
    assert not any("would take" in note for note in notes(1, cache="taylorseer"))
    assert not any("would take" in note for note in notes(1, cuda_graphs=True))
