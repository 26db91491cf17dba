"""The table of flags: which strategy, who places which part, and what is said, word by word."""

import logging

import pytest

from fastvideo_lightning import HostResidentStrategy, OffloadConfig, VideoModule, make_strategy
from fastvideo_lightning.callbacks import (
    CPUExecution,
    LayerwiseOffload,
    ModelOffload,
    Resident,
)
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.generator import placements as placements_file
from fastvideo_lightning.generator.placements import make_placements
from fastvideo_lightning.strategies import FSDPInferenceStrategy

FSDP = {"use_fsdp_inference": True, "dit_layerwise_offload": False}
CONFLICT = (
    "dit_layerwise_offload=True cannot be combined with use_fsdp_inference=True: FSDP already "
    "moves the denoiser's weights layer by layer. Pass dit_layerwise_offload=False, or leave FSDP "
    "off."
)


@pytest.fixture(scope="module")
def tiny():
    return VideoModule.from_pretrained("tiny-shapes", device_type="cpu")


@pytest.fixture
def placed(tiny, caplog, monkeypatch):
    """Return, for flags on GPUs, who places each component, and what was said."""
    monkeypatch.setattr(placements_file, "_told", set())

    def place(num_processes=1, on_gpu=True, **flags):
        with caplog.at_level(logging.INFO):
            made = make_placements(
                tiny, OffloadConfig(**flags), on_gpu=on_gpu, num_processes=num_processes
            )
        targets = {c.target: c for c in made if isinstance(c, Placement)}
        return targets, [record.message for record in caplog.records]

    return place


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(
    ("flags", "strategy", "denoiser"),
    [
        ({"use_fsdp_inference": False}, HostResidentStrategy, LayerwiseOffload),
        ({"dit_layerwise_offload": False}, HostResidentStrategy, Resident),
        ({**FSDP, "dit_cpu_offload": False}, FSDPInferenceStrategy, None),
        ({**FSDP, "dit_cpu_offload": True}, FSDPInferenceStrategy, None),
    ],
)
def test_each_row_has_its_strategy_and_its_placement(
    placed, flags, strategy, denoiser, num_processes
):
    targets, _ = placed(num_processes, **flags)
    found = targets.get("transformer")
    assert type(found) is (denoiser or type(None))
    made = make_strategy(OffloadConfig(**flags))
    assert type(made) is strategy
    if denoiser is None:
        assert made._cpu_offload is flags["dit_cpu_offload"]


@pytest.mark.parametrize("layerwise", [{}, {"dit_layerwise_offload": True}])
@pytest.mark.parametrize("dit_cpu_offload", [True, False])
def test_fsdp_and_streaming_are_refused_in_these_words(layerwise, dit_cpu_offload):
    with pytest.raises(ValueError, match="cannot be combined") as caught:
        OffloadConfig(use_fsdp_inference=True, dit_cpu_offload=dit_cpu_offload, **layerwise)
    assert str(caught.value) == CONFLICT
    by_default = ["dit_layerwise_offload is on unless it is turned off."]
    assert getattr(caught.value, "__notes__", []) == ([] if layerwise else by_default)


@pytest.mark.parametrize("fsdp", [{}, FSDP])
@pytest.mark.parametrize(
    ("flags", "target", "kind"),
    [
        ({}, "text_encoder", CPUExecution),
        ({"text_encoder_cpu_offload": False}, "text_encoder", Resident),
        ({"text_encoder_layerwise_offload": True}, "text_encoder", LayerwiseOffload),
        ({}, "vae", ModelOffload),
        ({"vae_cpu_offload": False}, "vae", Resident),
    ],
)
def test_encoders_and_vae_follow_their_own_flags_with_fsdp_too(placed, fsdp, flags, target, kind):
    targets, _ = placed(2, **fsdp, **flags)
    assert type(targets[target]) is kind


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "dit_cpu_offload=True has no effect without use_fsdp_inference=True."),
        (
            {"shard_transport": "gather"},
            "shard_transport='gather' has no effect where not several processes stream.",
        ),
        (
            {"text_encoder_layerwise_offload": True},
            "text_encoder_cpu_offload=True has no effect with text_encoder_layerwise_offload=True, "
            "which streams the encoder instead.",
        ),
        (
            {"gpu_memory_budget": 12, "on_gpu": False},
            "gpu_memory_budget=12 has no effect on the CPU: there is no GPU memory to keep to it.",
        ),
        (
            {"cuda_graphs": True, "on_gpu": False},
            "cuda_graphs=True has no effect on the CPU: there is no GPU to repeat a step.",
        ),
        (
            {"on_oom": "replan", "on_gpu": False},
            "on_oom='replan' has no effect on the CPU: there is no GPU memory to run out of.",
        ),
        (
            {**FSDP, "on_gpu": False, "num_processes": 2},
            "Running on the CPU: FSDP shards the denoiser in host memory; the other offload flags "
            "have no effect.",
        ),
        (
            {"on_gpu": False},
            "Running on the CPU: weights stay in host memory and compute there, so the offload "
            "flags have no effect.",
        ),
    ],
)
def test_a_flag_without_effect_is_said_once_in_these_words(placed, options, said):
    placed(**options)
    _, messages = placed(**options)
    assert messages.count(said) == 1


def test_nothing_is_said_of_host_shards_where_fsdp_uses_them(placed):
    _, messages = placed(2, **FSDP)
    assert not [message for message in messages if "dit_cpu_offload" in message]
