import pickle
import re
from itertools import product

import diffusers
import pytest

from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule
from fastvideo_lightning.modules.signature import CallSignature
from fastvideo_lightning.plan import BudgetTooSmallError, find_card, make_plan, planner, sizes
from fastvideo_lightning.plan.choose import CHOSEN, choose, possible_configs
from fastvideo_lightning.plan.machine import GIB
from fastvideo_lightning.plan.predict import predict
from fastvideo_lightning.plan.workload import Workload

VIDEO = SamplingParams(height=480, width=832, num_frames=17, num_inference_steps=30)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("wan-14b", 17),
        *(
            pytest.param(*other, marks=pytest.mark.exhaustive)
            for other in product(("wan-14b", "wan-1.3b"), (1, 17, 81))
            if other != ("wan-14b", 17)
        ),
    ],
)
def test_no_set_of_flags_that_fits_is_faster(name, frames, wan):
    subject = Workload.of(wan(name), VIDEO.merge(num_frames=frames))
    card = find_card("H100")
    for budget_gib in (8, 12, 16, 24, 40):
        chosen = choose(subject, OffloadConfig(), card, budget_gib * GIB)
        assert chosen.reserved_bytes <= budget_gib * GIB
        others = [predict(subject, c, card) for c in possible_configs(subject, OffloadConfig())]
        fitting = [each for each in others if each.reserved_bytes <= budget_gib * GIB]
        untiled = [each for each in fitting if not each.config.vae_tiling]
        assert chosen.config.vae_tiling == (not untiled)
        assert chosen.time_s <= 1.001 * min(each.time_s for each in untiled or fitting)


def test_what_the_host_needs_is_said_beside_what_it_has(wan, monkeypatch):
    def said(host_gib=None):
        flags = {"budget_gib": 10, "card": "H100", "host_memory_gib": host_gib}
        made = make_plan(wan("wan-14b"), VIDEO, **flags)
        _, _, after = " ".join(str(made).split()).partition("Host memory for weights: ")
        return after, made.to_dict()["host_memory_bytes"]

    for host_gib, less in ((16, True), (512, False)):
        monkeypatch.setattr(planner, "find_all_memory", lambda size=host_gib * GIB: size)
        line, size = said()
        assert f"this machine has {host_gib}.00 GiB" in line
        assert ("which is less: with --host-memory 16" in line) is less
        assert size == host_gib * GIB
    assert "; the host planned for has 64.00 GiB. On the host, with" in said(64)[0]


def test_one_line_says_what_waits_where_on_the_host_why_and_how_long_it_takes(wan, monkeypatch):
    # files of 28 GB that hold the weights as they run, which the model on meta has not
    monkeypatch.setattr(sizes, "_held", lambda root, binding: 0)
    flags = {"dit_layerwise_offload": True, "dit_resident_blocks": 0}

    def line(gib, frames):
        video = VIDEO.merge(num_frames=frames)
        hardware = {"card": "H100", "host_memory_gib": gib, "disk_gb_per_s": 5}
        return make_plan(wan("wan-14b"), video, flags=flags, **hardware).to_dict()["host_line"]

    assert "with 512 GiB of memory: of transformer all that moves held in memory: " in line(512, 17)
    some = (
        r"with 16 GiB of memory: of transformer \d+ held in memory, \d+ read from the disk: .* s of"
    )
    assert re.search(some + ".* step, hidden", line(16, 81))
    assert re.search(some + ".* step, which the step waits for", line(16, 1))


def test_a_larger_budget_is_never_slower(wan):
    times = [
        make_plan(wan("wan-14b"), VIDEO, budget_gib=b, card="H100").time_s for b in (8, 14, 40)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_all_that_fits_stays_resident(wan):
    plan = make_plan(wan("wan-1.3b"), VIDEO, budget_gib=40, card="H100")
    assert not plan.flags["dit_layerwise_offload"]
    assert not plan.flags["text_encoder_cpu_offload"]
    assert not plan.flags["vae_cpu_offload"]
    assert not plan.flags["vae_tiling"]


@pytest.mark.parametrize(
    "flags",
    [
        {"dit_layerwise_offload": True},
        {"dit_layerwise_offload": False},
        {"dit_layerwise_offload": True, "dit_resident_blocks": 6},
        {"dit_layerwise_offload": True, "num_slots": 1},
        {"dit_layerwise_offload": True, "num_slots": 4},
        {"text_encoder_cpu_offload": True},
        {"text_encoder_cpu_offload": False},
        {"text_encoder_layerwise_offload": True},
        {"text_encoder_cpu_offload": True, "text_encoder_layerwise_offload": True},
        {"vae_cpu_offload": True, "vae_tiling": True},
        {"image_encoder_cpu_offload": False},
        {"pin_cpu_memory": False},
    ],
)
def test_flags_that_were_passed_are_kept(flags, wan):
    plan = make_plan(wan("wan-14b"), VIDEO, budget_gib=70, card="H100", flags=flags)
    for name, value in flags.items():
        assert getattr(plan.config, name) == value


def test_an_encoder_asked_to_compute_on_the_cpu_is_not_streamed_instead(wan):
    flags = {"text_encoder_cpu_offload": True}
    plan = make_plan(wan("wan-14b"), VIDEO, budget_gib=12, card="H100", flags=flags)
    assert not plan.config.text_encoder_layerwise_offload


def test_a_flag_passed_at_its_default_is_kept_and_one_left_out_is_chosen(wan):
    free = make_plan(wan("wan-1.3b"), VIDEO, budget_gib=70, card="H100", flags=OffloadConfig())
    kept = OffloadConfig(vae_cpu_offload=True)
    kept_plan = make_plan(wan("wan-1.3b"), VIDEO, budget_gib=70, card="H100", flags=kept)
    assert not free.config.vae_cpu_offload
    assert kept_plan.config.vae_cpu_offload


def test_an_impossible_budget_names_the_smallest_and_that_one_works(wan):
    with pytest.raises(BudgetTooSmallError, match="smallest possible is") as caught:
        make_plan(wan("wan-14b"), VIDEO, budget_gib=1, card="H100")
    smallest = float(str(caught.value).partition("Pass gpu_memory_budget=")[2].partition(",")[0])
    plan = make_plan(wan("wan-14b"), VIDEO, budget_gib=smallest, card="H100")
    assert plan.reserved_bytes <= smallest * GIB
    with pytest.raises(BudgetTooSmallError):
        make_plan(wan("wan-14b"), VIDEO, budget_gib=smallest - 0.1, card="H100")


def test_a_budget_beyond_the_card_is_refused_and_none_is_named_that_it_has_not(wan):
    with pytest.raises(ValueError, match="more than all memory of the RTX 3060, 11.6 GiB"):
        make_plan(wan("wan-14b"), VIDEO, budget_gib=12, card="RTX 3060")
    make_plan(wan("wan-14b"), VIDEO, budget_gib=11.6, card="RTX 3060")
    make_plan(wan("wan-14b"), VIDEO, budget_gib=12)  # of no known card
    flags = {"dit_layerwise_offload": False}
    with pytest.raises(BudgetTooSmallError, match="stage takes. Pass a smaller height, width or"):
        make_plan(wan("wan-14b"), VIDEO, budget_gib=3, card="RTX 3060", flags=flags)


def test_a_budget_that_nobody_typed_is_told_as_what_the_card_has_free(wan):
    flags = {"dit_layerwise_offload": False}
    said = "^gpu_memory_budget=auto is 10.6 GiB on the RTX 3060, too small: the smallest possible"
    with pytest.raises(BudgetTooSmallError, match=said):
        make_plan(wan("wan-14b"), VIDEO, budget_gib="auto", card="RTX 3060", flags=flags)


@pytest.mark.parametrize(
    ("size", "budget", "fitting"),
    [
        ((720, 1280, 81), 10.6, {"height": 480, "width": 832}),
        ((1280, 720, 81), 10.6, {"height": 832, "width": 480}),
        pytest.param((480, 832, 81), 6, {"num_frames": 41}, marks=pytest.mark.exhaustive),
        pytest.param((96, 96, 81), 1, {}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_video_that_does_not_fit_is_named_with_the_nearest_that_does(size, budget, fitting, wan):
    video = SamplingParams(**dict(zip(("height", "width", "num_frames"), size, strict=True)))
    with pytest.raises(BudgetTooSmallError) as caught:
        make_plan(wan("wan-14b"), video, budget_gib=budget, card="RTX 3060")
    said = str(caught.value)
    assert f"GiB for {size[1]}x{size[0]}, {size[2]} frames, which" in said
    named = " ".join(f"{name}={value}" for name, value in fitting.items())
    assert said.endswith(f"num_frames: {named} fits." if named else "width or num_frames.")
    if fitting:
        make_plan(wan("wan-14b"), video.merge(**fitting), budget_gib=budget, card="RTX 3060")


def test_flags_that_are_in_the_way_are_named_with_what_is_enough_without(wan):
    flags = {"dit_layerwise_offload": False, "vae_tiling": False, "compile": True}
    with pytest.raises(BudgetTooSmallError) as caught:
        make_plan(wan("wan-14b"), VIDEO, budget_gib=12, card="H100", flags=flags)
    _, _, said = str(caught.value).partition(
        "or leave out dit_layerwise_offload=False, vae_tiling=False: without, "
    )
    enough = float(said.partition(" GiB are enough")[0])
    plan = make_plan(wan("wan-14b"), VIDEO, budget_gib=enough, card="H100", flags={"compile": True})
    assert plan.reserved_bytes <= enough * GIB
    with pytest.raises(BudgetTooSmallError) as caught:
        make_plan(wan("wan-14b"), VIDEO, budget_gib=1, card="H100", flags=flags)
    assert "leave out" not in str(caught.value), "nothing fits without them either"


def test_a_budget_is_refused_for_all_videos_only_where_the_smallest_does_not_fit(
    wan, checkpoint, monkeypatch
):
    def check(module, budget, **flags):
        planner.check_budget(module, OffloadConfig(gpu_memory_budget=budget, **flags))

    monkeypatch.setattr(planner, "find_machine", lambda: find_card("RTX 3060"))
    large = wan("wan-14b")
    check(large, None)
    with pytest.raises(BudgetTooSmallError):
        make_plan(large, budget_gib=2)  # the video that it makes by default
    check(large, 2)
    make_plan(large, SamplingParams(height=16, width=16, num_frames=1), budget_gib=2)
    with pytest.raises(BudgetTooSmallError, match=r"Pass more than gpu_memory_budget=2\.0\.$"):
        check(large, 1.9)
    with pytest.raises(BudgetTooSmallError, match="Pass a smaller model, or leave out dit_layerw"):
        check(large, 11, dit_layerwise_offload=False)
    with pytest.raises(ValueError, match="more than all memory of the RTX 3060"):
        check(large, 12)
    needs_image = VideoModule.from_pretrained(checkpoint("i2v_clip"), device_type="cpu")
    check(needs_image, 1)


@pytest.mark.parametrize("kind", ["i2v_clip", "i2v", "first_last"])
def test_a_plan_of_a_model_that_starts_from_a_picture_needs_none(checkpoint, image, kind):
    module = VideoModule.from_pretrained(checkpoint(kind), device_type="cpu")
    size = {"height": 32, "width": 32, "num_frames": 5}
    alone = make_plan(module, SamplingParams(**size), card="T4")
    beside = make_plan(module, SamplingParams(**size, image_path=image), card="T4")
    assert alone.to_dict() == beside.to_dict()
    assert alone.subject.request.has_image
    with pytest.raises(ValueError, match="image_path is missing"):
        module.resolve_sampling(SamplingParams(**size))


@pytest.mark.parametrize(
    ("pipeline", "needs"),
    [
        (diffusers.LTXImageToVideoPipeline, True),
        (diffusers.I2VGenXLPipeline, True),
        (diffusers.StableVideoDiffusionPipeline, True),
        (diffusers.LTXPipeline, False),
        (diffusers.WanVideoToVideoPipeline, False),
    ],
)
def test_a_pipeline_that_needs_a_picture_is_known(pipeline, needs):
    assert CallSignature(pipeline).needs("image_path", pipeline.__name__) is needs


def test_a_long_time_is_said_in_hours_and_minutes_too(wan):
    text = str(make_plan(wan("wan-14b"), SamplingParams(num_frames=81), card="T4"))
    times = re.search(r"Time: (\d+) s \((\d+) h (\d+) min\) a video", text)
    seconds, hours, minutes = times.groups()
    assert abs(int(seconds) - 3600 * int(hours) - 60 * int(minutes)) <= 31
    assert "(" not in str(make_plan(wan("wan-1.3b"), VIDEO, card="H100")).split("Time:")[1]


def test_tiles_are_taken_only_where_nothing_fits_without(wan):
    whole = make_plan(wan("wan-1.3b"), VIDEO, budget_gib=20, card="H100")
    tiled = make_plan(wan("wan-1.3b"), VIDEO, budget_gib=6, card="H100")
    assert (whole.flags["vae_tiling"], tiled.flags["vae_tiling"]) == (False, True)
    with pytest.raises(BudgetTooSmallError):
        make_plan(wan("wan-1.3b"), VIDEO, budget_gib=6, card="H100", flags={"vae_tiling": False})


def test_every_decided_flag_is_a_field_of_the_configuration():
    assert set(CHOSEN) < set(OffloadConfig.__dataclass_fields__)


def test_fsdp_cannot_be_planned(wan):
    flags = {"use_fsdp_inference": True, "dit_layerwise_offload": False}
    with pytest.raises(ValueError, match="A plan is for one GPU"):
        make_plan(wan("wan-1.3b"), VIDEO, card="H100", flags=flags)


def test_flags_without_effect_on_the_model_are_left_out(wan):
    plan = make_plan(wan("wan-1.3b"), VIDEO, budget_gib=40, card="H100")
    assert "image_encoder_cpu_offload" not in plan.flags
    assert "dit_resident_blocks" not in plan.flags
    assert "--image-encoder" not in plan.command_line


def test_a_plan_that_is_kept_keeps_no_model(wan):
    plan = make_plan(wan("wan-1.3b"), VIDEO, budget_gib=6, card="H100")
    kept = pickle.dumps(plan)
    assert len(kept) < 1 << 16
    again = pickle.loads(kept)
    assert again.flags == plan.flags
    assert again.prediction.reserved_bytes == plan.prediction.reserved_bytes
