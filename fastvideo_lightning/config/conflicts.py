"""Which flags cannot be combined, why, and what to pass instead."""

from typing import Any


def check_combinations(config: Any) -> None:
    """Check an `OffloadConfig` whose flags are valid one by one.

    Raises:
        ValueError: For the first flags that cannot be combined.
    """
    if config.use_fsdp_inference:
        _check_fsdp(config)
    if config.cuda_graphs:
        _check_graphs(config)
    if config.pair_guidance is True and config.cache is not None:
        raise ValueError(
            f"pair_guidance=True cannot be combined with cache={config.cache!r}: a cache may skip "
            "a block in one of the two calls. Leave one of the two out."
        )
    if config.guidance_parallel > 1:
        _check_branches(config)
    if config.host_memory in ("courier", "disk") and config.shard_transport == "gather":
        raise ValueError(
            f"host_memory={config.host_memory!r} cannot be combined with shard_transport='gather': "
            "each process reads files for itself. Pass shard_transport='local'."
        )
    if config.cache is not None and config.compile:
        raise ValueError(
            f"cache={config.cache!r} cannot be combined with compile=True: whether a block is "
            "computed is decided while the step runs. Leave one of the two out."
        )
    if config.cache == "first_block" and config.context_parallel > 1:
        raise ValueError(
            "cache='first_block' cannot be combined with "
            f"context_parallel={config.context_parallel}: each process would decide by its part of "
            "the video which blocks to skip, and others would wait for it. "
            "Pass cache='taylorseer', which decides by the step, or leave one of the two out."
        )


def check_dtype(dtype: object, config: Any) -> None:
    """Raise ValueError where quantized weights would be sharded."""
    if config.use_fsdp_inference and isinstance(dtype, str) and dtype in ("fp8", "int8"):
        raise ValueError(
            f"dtype={dtype!r} cannot be combined with use_fsdp_inference=True, which does not "
            "divide quantized weights. Leave FSDP off: with dit_layerwise_offload=True they "
            "stream, over several GPUs as well."
        )


def check_auto_budget(budget_gib: object, *, on_gpu: bool) -> None:
    """Raise ValueError where a page that computes on the CPU is to find out what is free on a GPU.

    A number of GiB its plans have to keep all the same.
    """
    if budget_gib == "auto" and not on_gpu:
        raise ValueError(
            "gpu_memory_budget='auto' asks how much GPU memory is free, and this machine has no "
            "GPU. Pass a number of GiB."
        )


def _check_fsdp(config: Any) -> None:
    if config.dit_layerwise_offload:
        conflict = ValueError(
            "dit_layerwise_offload=True cannot be combined with use_fsdp_inference=True: "
            "FSDP already moves the denoiser's weights layer by layer. "
            "Pass dit_layerwise_offload=False, or leave FSDP off."
        )
        if "dit_layerwise_offload" not in config.given:
            conflict.add_note("dit_layerwise_offload is on unless it is turned off.")
        raise conflict
    if config.gpu_memory_budget is not None:
        raise ValueError(
            f"gpu_memory_budget={config.gpu_memory_budget} cannot be combined with "
            "use_fsdp_inference=True, whose shards it does not place. Leave one of the two out."
        )
    if config.cache == "first_block":
        raise ValueError(
            "cache='first_block' cannot be combined with use_fsdp_inference=True: each process "
            "would decide by its own video which blocks to skip, and others would wait for its "
            "part of their weights. "
            "Pass cache='taylorseer', which decides by the step, or leave one of the two out."
        )


def _check_branches(config: Any) -> None:
    if config.guidance_parallel > 2:
        raise ValueError(
            f"guidance_parallel must be 1 or 2, got {config.guidance_parallel}: guidance makes two "
            "calls a step. Pass guidance_parallel=2, and context_parallel for more processes."
        )
    for meets, other, reason in (
        (
            config.use_fsdp_inference,
            "use_fsdp_inference=True",
            "FSDP gathers each block for all processes, which must make the same calls",
        ),
        (
            config.pair_guidance is True,
            "pair_guidance=True",
            "each process makes one of the two calls",
        ),
        (config.cuda_graphs, "cuda_graphs=True", "a graph is one call"),
        (
            config.cache is not None,
            f"cache={config.cache!r}",
            "a cache keeps what it sees of both calls",
        ),
    ):
        if meets:
            raise ValueError(
                f"guidance_parallel=2 cannot be combined with {other}: {reason}. Leave one of the "
                "two out."
            )


def _check_graphs(config: Any) -> None:
    is_pageable = config.host_memory == "pageable" or not config.pin_cpu_memory
    alike = "several processes would have to capture alike"
    for meets, other, reason in (
        (
            config.use_fsdp_inference,
            "use_fsdp_inference=True",
            "FSDP gathers weights to other addresses in every step",
        ),
        (
            config.cache is not None,
            f"cache={config.cache!r}",
            "a cache decides anew in every step what is computed",
        ),
        (config.pair_guidance is True, "pair_guidance=True", "a graph is one call"),
        (config.context_parallel > 1, f"context_parallel={config.context_parallel}", alike),
        (config.shard_transport == "gather", "shard_transport='gather'", alike),
        (
            config.dit_layerwise_offload and is_pageable,
            "pageable host memory",
            "a graph copies from pinned memory alone",
        ),
        (
            config.dit_layerwise_offload and config.host_memory in ("courier", "disk"),
            f"host_memory={config.host_memory!r}",
            "a graph repeats copies from memory, not reads from a file",
        ),
    ):
        if meets:
            raise ValueError(
                f"cuda_graphs=True cannot be combined with {other}: {reason}. Leave one of the "
                "two out."
            )
