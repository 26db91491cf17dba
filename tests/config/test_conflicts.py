"""Flags that cannot be combined: each pair is refused in its own words, before a weight is read."""

import pytest
from click.testing import CliRunner

from fastvideo_lightning import OffloadConfig, VideoGenerator
from fastvideo_lightning.cli.app import cli
from fastvideo_lightning.config.conflicts import check_dtype

FSDP = {"use_fsdp_inference": True, "dit_layerwise_offload": False}
TABLE = [
    (
        {"use_fsdp_inference": True},
        "dit_layerwise_offload=True cannot be combined with use_fsdp_inference=True: FSDP already "
        "moves the denoiser's weights layer by layer. Pass dit_layerwise_offload=False, or leave "
        "FSDP off.",
    ),
    (
        {**FSDP, "gpu_memory_budget": 8},
        "gpu_memory_budget=8 cannot be combined with use_fsdp_inference=True, whose shards it does "
        "not place. Leave one of the two out.",
    ),
    (
        {**FSDP, "cache": "first_block"},
        "cache='first_block' cannot be combined with use_fsdp_inference=True: each process would "
        "decide by its own video which blocks to skip, and others would wait for its part of their "
        "weights. Pass cache='taylorseer', which decides by the step, or leave one of the two out.",
    ),
    (
        {"context_parallel": 2, "cache": "first_block"},
        "cache='first_block' cannot be combined with context_parallel=2: each process would decide "
        "by its part of the video which blocks to skip, and others would wait for it. Pass "
        "cache='taylorseer', which decides by the step, or leave one of the two out.",
    ),
    *(
        (
            {**flags, "guidance_parallel": 2},
            f"guidance_parallel=2 cannot be combined with {other}: {reason}. "
            "Leave one of the two out.",
        )
        for flags, other, reason in (
            (
                FSDP,
                "use_fsdp_inference=True",
                "FSDP gathers each block for all processes, which must make the same calls",
            ),
            (
                {"pair_guidance": True},
                "pair_guidance=True",
                "each process makes one of the two calls",
            ),
            ({"cuda_graphs": True}, "cuda_graphs=True", "a graph is one call"),
            (
                {"cache": "taylorseer"},
                "cache='taylorseer'",
                "a cache keeps what it sees of both calls",
            ),
        )
    ),
    (
        {"compile": True, "cache": "pyramid"},
        "cache='pyramid' cannot be combined with compile=True: whether a block is computed is "
        "decided while the step runs. Leave one of the two out.",
    ),
    *(
        (
            {**flags, "cuda_graphs": True},
            f"cuda_graphs=True cannot be combined with {other}: {reason}. "
            "Leave one of the two out.",
        )
        for flags, other, reason in (
            (
                FSDP,
                "use_fsdp_inference=True",
                "FSDP gathers weights to other addresses in every step",
            ),
            (
                {"cache": "pyramid"},
                "cache='pyramid'",
                "a cache decides anew in every step what is computed",
            ),
            (
                {"context_parallel": 2},
                "context_parallel=2",
                "several processes would have to capture alike",
            ),
            (
                {"shard_transport": "gather"},
                "shard_transport='gather'",
                "several processes would have to capture alike",
            ),
            (
                {"pin_cpu_memory": False},
                "pageable host memory",
                "a graph copies from pinned memory alone",
            ),
        )
    ),
    (
        {"host_memory": "mapped", "pin_cpu_memory": False},
        "host_memory='mapped' is pinned memory, which pin_cpu_memory=False forbids. Pass "
        "host_memory='pageable', or leave pin_cpu_memory on.",
    ),
]
QUANTIZED = (
    "dtype='int8' cannot be combined with use_fsdp_inference=True, which does not divide quantized "
    "weights. Leave FSDP off: with dit_layerwise_offload=True they stream, over several GPUs as "
    "well."
)


@pytest.mark.parametrize(("flags", "message"), TABLE, ids=lambda row: "-".join(row)[:40])
def test_flags_that_cannot_be_combined_are_refused_in_these_words(flags, message):
    with pytest.raises(ValueError, match="cannot be|forbids") as caught:
        OffloadConfig(**flags)
    assert str(caught.value) == message


@pytest.mark.parametrize("flags", [{**FSDP, "cache": "taylorseer"}, {**FSDP, "cache": "pyramid"}])
def test_caches_that_decide_by_the_step_are_accepted_with_fsdp(flags):
    assert OffloadConfig(**flags).cache == flags["cache"]
    assert OffloadConfig(context_parallel=2, cache="taylorseer").context_parallel == 2


def test_quantized_weights_are_refused_with_fsdp_before_the_model_is_looked_for():
    with pytest.raises(ValueError, match="cannot be combined") as caught:
        VideoGenerator.from_pretrained("no/such/model", dtype="int8", **FSDP)
    assert str(caught.value) == QUANTIZED
    for dtype, flags in (("int8", {}), ("bf16", FSDP)):
        check_dtype(dtype, OffloadConfig(**flags))


def test_the_command_refuses_them_too_as_the_users_mistake():
    options = ["--prompt", "a", "--use-fsdp-inference", "--no-dit-layerwise-offload"]
    result = CliRunner().invoke(cli, ["generate", *options, "--dtype", "int8"])
    assert result.exit_code == 2
    assert "cannot be combined with --use-fsdp-inference" in result.output


@pytest.mark.parametrize("backend", ["_native_math", "flex", "xformers", "sage_varlen"])
def test_an_attention_that_cannot_be_divided_is_refused_before_a_weight_is_read(backend):
    flags = {"attention_backend": backend, "context_parallel": 2}
    with pytest.raises(ValueError, match="cannot be combined") as caught:
        VideoGenerator.from_pretrained(accelerator="cpu", num_gpus=2, **flags)
    refused, _, rest = str(caught.value).partition(": diffusers divides attention among processes ")
    assert refused == f"attention_backend={backend!r} cannot be combined with context_parallel=2"
    able = rest.removeprefix("only with ").partition(". Pass attention_backend='native'")[0]
    assert {"native", "flash", "sage"} <= set(able.split(", "))
    assert backend not in able.split(", ")
