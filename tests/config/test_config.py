import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import numpy as np
import pytest

from fastvideo_lightning.config import OffloadConfig, SamplingParams, nearest_name

COUNTS = ["height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "fps"]


def test_flag_defaults_are_those_of_the_reference_page():
    assert asdict(OffloadConfig()) == {
        "dit_layerwise_offload": True,
        "use_fsdp_inference": False,
        "dit_cpu_offload": True,
        "text_encoder_cpu_offload": True,
        "image_encoder_cpu_offload": True,
        "vae_cpu_offload": True,
        "pin_cpu_memory": True,
        "host_memory": "auto",
        "shard_transport": "auto",
        "text_encoder_layerwise_offload": False,
        "dit_resident_blocks": 0,
        "num_slots": 2,
        "context_parallel": 1,
        "guidance_parallel": 1,
        "compile": False,
        "cuda_graphs": False,
        "pair_guidance": False,
        "weight_compression": "none",
        "vae_tiling": False,
        "vae_slicing": False,
        "attention_backend": None,
        "cache": None,
        "gpu_memory_budget": None,
        "host_memory_budget": None,
        "on_oom": "raise",
    }


@pytest.mark.parametrize("given", [{}, {"dit_layerwise_offload": True}])
def test_fsdp_with_layerwise_offload_is_refused_even_when_the_second_is_the_default(given):
    with pytest.raises(ValueError, match="cannot be combined") as caught:
        OffloadConfig(use_fsdp_inference=True, **given)
    assert str(caught.value).endswith("Pass dit_layerwise_offload=False, or leave FSDP off.")


@pytest.mark.parametrize("dit_cpu_offload", [True, False])
def test_fsdp_without_layerwise_offload_is_accepted(dit_cpu_offload):
    config = OffloadConfig(
        use_fsdp_inference=True, dit_layerwise_offload=False, dit_cpu_offload=dit_cpu_offload
    )
    assert config.dit_cpu_offload is dit_cpu_offload


@pytest.mark.parametrize("value", ["no", 0, 1, None])
@pytest.mark.parametrize(
    "flag", [field.name for field in fields(OffloadConfig) if field.type in (bool, "bool")]
)
def test_a_flag_that_is_no_bool_is_refused_by_its_name(flag, value):
    with pytest.raises(TypeError, match=f"{flag} must be True or False, got {value!r}"):
        OffloadConfig(**{flag: value})


@pytest.mark.parametrize("value", ["fast", None, True])
def test_an_unknown_kind_of_host_memory_is_refused_with_the_known_ones(value):
    with pytest.raises(
        ValueError, match="one of auto, mapped, pinned, pageable, courier, disk, got"
    ):
        OffloadConfig(host_memory=value)


@pytest.mark.parametrize("value", ["nccl", None, True])
def test_an_unknown_shard_transport_is_refused_with_the_known_ones(value):
    with pytest.raises(ValueError, match="one of auto, gather, local, got"):
        OffloadConfig(shard_transport=value)


@pytest.mark.parametrize("kind", ["mapped", "pinned", "courier"])
def test_pinned_host_memory_without_pinning_is_refused(kind):
    with pytest.raises(ValueError, match=f"host_memory='{kind}'.*pin_cpu_memory=False"):
        OffloadConfig(host_memory=kind, pin_cpu_memory=False)
    assert OffloadConfig(host_memory="pageable", pin_cpu_memory=False)


@pytest.mark.parametrize("made", [OffloadConfig(), SamplingParams()])
def test_choices_cannot_change_after_they_were_checked(made):
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(made)[0].name, None)


def test_sampling_params_leave_everything_but_the_seed_to_the_family():
    assert SamplingParams().given() == {"seed": 1024}


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_below_one_is_refused_with_what_came_and_what_to_pass(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}\. Pass .*{name}=\d+"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("value", [1.5, 16.0, "16", True])
@pytest.mark.parametrize("name", [*COUNTS, "seed"])
def test_a_count_that_is_no_whole_number_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a whole number"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("fps", 241), ("seed", -1), ("seed", 2**63)])
def test_fps_and_seed_have_limits_on_both_sides(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("fps", 240), ("fps", 1), ("seed", 2**63 - 1)])
def test_the_limits_themselves_are_accepted(name, value):
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.5])
@pytest.mark.parametrize("name", ["guidance_scale", "guidance_scale_2", "flow_shift"])
def test_a_strength_that_is_not_finite_or_negative_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        SamplingParams(**{name: value})


def test_guidance_may_be_zero_but_flow_shift_may_not():
    assert SamplingParams(guidance_scale=0).guidance_scale == 0.0
    with pytest.raises(ValueError, match="flow_shift must be a finite number above 0"):
        SamplingParams(flow_shift=0)


@pytest.mark.parametrize("value", [7, b"x", ""])
def test_an_image_path_that_is_no_path_is_refused(value):
    with pytest.raises(TypeError, match="image_path must be the path of an image"):
        SamplingParams(image_path=value)
    assert SamplingParams(image_path=Path("a.png")).image_path == Path("a.png")


def test_numpy_numbers_become_plain_ones():
    params = SamplingParams(seed=np.int64(3), guidance_scale=np.float32(2))
    assert (type(params.seed), type(params.guidance_scale)) == (int, float)


def test_merge_overrides_what_is_given_and_keeps_the_rest():
    base = SamplingParams(height=64, width=64, seed=1)
    merged = base.merge(height=96, width=None)
    assert (merged.height, merged.width, merged.seed) == (96, 64, 1)
    assert base.height == 64


@pytest.mark.parametrize(
    "make",
    [
        lambda: SamplingParams.from_mapping({"num_frame": 5}),
        lambda: SamplingParams().merge(num_frame=5),
        lambda: SamplingParams.from_mapping({"num-frame": 5}),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(make):
    with pytest.raises(ValueError, match=r"does not know 'num.frame'\. Did you mean num_frames\?"):
        make()


def test_an_unknown_flag_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"Did you mean vae_cpu_offload\?"):
        OffloadConfig.from_mapping({"vae_offload": True})


def test_a_name_like_no_other_gets_no_suggestion():
    assert nearest_name("zzzzzz", ["height", "width"]) is None


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, ValueError)]
)
def test_resident_blocks_are_a_whole_number(value, error):
    with pytest.raises(error, match=r"dit_resident_blocks must be a whole number, 0 or more, got "):
        OffloadConfig(dit_resident_blocks=value)


def test_a_configuration_remembers_which_flags_were_passed():
    config = OffloadConfig(True, vae_cpu_offload=True)
    assert config.given == {"dit_layerwise_offload", "vae_cpu_offload"}
    assert OffloadConfig().given == set()
    assert OffloadConfig() == config
    assert pickle.loads(pickle.dumps(config)).given == copy.copy(config).given == config.given


@pytest.mark.parametrize("budget", [None, "auto", 12, 0.5])
def test_budgets_that_can_be(budget):
    assert OffloadConfig(gpu_memory_budget=budget).gpu_memory_budget == budget


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"gpu_memory_budget": 0}, ValueError),
        ({"gpu_memory_budget": -1.5}, ValueError),
        ({"gpu_memory_budget": float("nan")}, ValueError),
        ({"gpu_memory_budget": "much"}, ValueError),
        ({"gpu_memory_budget": True}, TypeError),
        ({"gpu_memory_budget": [1]}, TypeError),
        ({"on_oom": "retry"}, ValueError),
    ],
)
def test_impossible_budgets_are_refused_by_name(flags, error):
    with pytest.raises(error, match=next(iter(flags))):
        OffloadConfig(**flags)


def test_a_text_that_is_no_budget_is_answered_by_a_number_first():
    with pytest.raises(ValueError, match=r"got 'abc'\. Pass .* gpu_memory_budget=12, or.* 'auto'"):
        OffloadConfig(gpu_memory_budget="abc")


def test_a_budget_cannot_be_kept_with_fsdp():
    flags = {"use_fsdp_inference": True, "dit_layerwise_offload": False}
    with pytest.raises(ValueError, match="gpu_memory_budget=8 cannot be combined"):
        OffloadConfig(gpu_memory_budget=8, **flags)


@pytest.mark.parametrize(
    "other",
    [
        {"cache": "first_block"},
        {"context_parallel": 2},
        {"shard_transport": "gather"},
        {"pin_cpu_memory": False},
        {"host_memory": "pageable"},
        {"use_fsdp_inference": True, "dit_layerwise_offload": False},
    ],
)
def test_a_graph_is_refused_with_what_changes_from_step_to_step_by_its_name(other):
    with pytest.raises(ValueError, match="cuda_graphs=True cannot be combined with .*: .*Leave"):
        OffloadConfig(cuda_graphs=True, **other)


def test_a_graph_of_resident_weights_needs_no_pinned_memory():
    assert OffloadConfig(cuda_graphs=True, dit_layerwise_offload=False, pin_cpu_memory=False)


def test_more_branches_than_guidance_has_calls_are_refused():
    with pytest.raises(ValueError, match="must be 1 or 2, got 3: .* Pass guidance_parallel=2, and"):
        OffloadConfig(guidance_parallel=3)
    with pytest.raises(TypeError, match="guidance_parallel must be a whole number"):
        OffloadConfig(guidance_parallel=2.0)


@pytest.mark.parametrize("value", ["maybe", 1, None])
def test_pairs_are_made_or_not_or_left_to_the_plan(value):
    assert OffloadConfig(pair_guidance="auto", cache="pyramid").pair_guidance == "auto"
    with pytest.raises(TypeError, match=r"pair_guidance must be True, False or 'auto', got"):
        OffloadConfig(pair_guidance=value)
