"""Which placement callbacks the flags mean for a module, and which flag would save memory."""

import logging
from collections.abc import Mapping

from fastvideo_lightning.callbacks import (
    CPUExecution,
    EncodeAhead,
    LayerwiseOffload,
    ModelOffload,
    Resident,
)
from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.steps import Stage
from fastvideo_lightning.plan.host_tiers import (
    HostTiers,
    deal_tiers,
    find_host_budget,
    find_moving,
)
from fastvideo_lightning.plan.machine import GIB
from fastvideo_lightning.plan.sizes import measure_components

_log = logging.getLogger(__name__)
_said: set[str] = set()


# What has no effect on a CPU and is no offload flag, and why.
_FOR_A_GPU = {
    "gpu_memory_budget": "there is no GPU memory to keep to it",
    "host_memory_budget": "weights stay in their files, which are mapped",
    "on_oom": "there is no GPU memory to run out of",
    "cuda_graphs": "there is no GPU to repeat a step",
}


def make_placements(
    module: VideoModule, config: OffloadConfig, *, on_gpu: bool, num_processes: int = 1
) -> list[object]:
    """Return one callback for each component, by its role.

    On a CPU there is none: host and device memory are the same, and weights stay where they are.
    Several processes share the denoisers' there as they do beside GPUs.
    """
    streams = config.dit_layerwise_offload and not config.use_fsdp_inference
    if config.shard_transport != "auto" and (num_processes == 1 or not streams):
        _say_once(
            f"shard_transport={config.shard_transport!r} has no effect where not several processes "
            "stream."
        )
    if config.dit_resident_blocks and config.use_fsdp_inference:
        _say_once("dit_resident_blocks has no effect with use_fsdp_inference=True.")
    streams_encoder = bool(config.text_encoder_layerwise_offload and module.text_encoders)
    if config.num_slots != OffloadConfig.num_slots and not (streams or streams_encoder):
        _say_once(f"num_slots={config.num_slots} has no effect where nothing streams.")
    if not on_gpu:
        _say_what_needs_a_gpu(config)
    memory = config.host_memory if config.pin_cpu_memory else "pageable"
    # Processes of a node hold weights once between them: what is free is not one's alone.
    is_bounded = num_processes == 1 or config.host_memory_budget is not None
    tiers = _host_tiers(module, config) if on_gpu and memory == "auto" and is_bounded else {}
    if not on_gpu and num_processes > 1 and streams:
        _say_once(
            f"Running on the CPU in {num_processes} processes: they stream the denoiser from "
            "memory that they share; the other offload flags have no effect."
        )
        return [
            _place_denoiser(fqn, module, config, memory, num_processes) for fqn in module.denoisers
        ]
    if not on_gpu and config.use_fsdp_inference:
        _say_once(
            "Running on the CPU: FSDP shards the denoiser in host memory; the other offload flags "
            "have no effect."
        )
        return []
    if not on_gpu:
        _say_once(
            "Running on the CPU: weights stay in host memory and compute there, so the offload "
            "flags have no effect."
        )
        return []
    if config.dit_cpu_offload and not config.use_fsdp_inference:
        _say_once("dit_cpu_offload=True has no effect without use_fsdp_inference=True.")
    placements: list[object] = []
    for fqn in module.denoisers if not config.use_fsdp_inference else ():
        of_blocks = tiers[fqn].host_memory(memory) if fqn in tiers else memory
        placements.append(_place_denoiser(fqn, module, config, of_blocks, num_processes))
    encoders = [
        _place_text_encoder(fqn, config, tiers[fqn].host_memory(memory) if fqn in tiers else memory)
        for fqn in module.text_encoders
    ]
    placements += encoders
    for fqns, offload in (
        (module.image_encoders, config.image_encoder_cpu_offload),
        (module.vaes, config.vae_cpu_offload),
    ):
        placements += [
            ModelOffload(f, host_memory=_kind_of(tiers.get(f), memory)) if offload else Resident(f)
            for f in fqns
        ]
    if encoders and all(isinstance(encoder, CPUExecution) for encoder in encoders):
        placements.append(EncodeAhead())
    return placements


def _host_tiers(module: VideoModule, config: OffloadConfig) -> dict[str, HostTiers]:
    """Where the weights that move wait, for what the host has; one line where some are read."""
    budget = find_host_budget(config)
    tiers = deal_tiers(find_moving(measure_components(module), config), budget)
    for fqn, each in tiers.items():
        if each.read_bytes:
            _log.info(
                "%s: of %d parts %s, to hold at most %.3g GiB of host memory (%s).",
                fqn,
                each.held + each.cached + each.on_disk,
                each,
                budget.held_bytes / GIB,
                "host_memory_budget" if budget.is_asked else "what is free",
            )
    return tiers


def _kind_of(tiers: HostTiers | None, memory: str) -> str:
    """The kind of host memory of a component that comes in whole."""
    if tiers is None or tiers.held:
        return memory
    return "courier" if tiers.cached else "disk"


def _place_denoiser(
    fqn: str,
    module: VideoModule,
    config: OffloadConfig,
    memory: str | Mapping[str, int],
    num_processes: int,
) -> object:
    if not config.dit_layerwise_offload:
        if config.dit_resident_blocks:
            _say_once(
                "dit_resident_blocks has no effect without dit_layerwise_offload=True: all blocks "
                "are resident."
            )
        return Resident(fqn, cuda_graphs=config.cuda_graphs)
    # Where processes bring blocks together, one that skips would leave the others waiting.
    is_apart = num_processes == 1 or config.shard_transport == "local"
    return LayerwiseOffload(
        fqn,
        num_slots=config.num_slots,
        resident_blocks=config.dit_resident_blocks,
        share_residents=module.denoisers_take_turns and config.dit_resident_blocks > 0,
        host_memory=memory,
        shard_transport=config.shard_transport,
        skippable=config.cache is not None and is_apart,
        cuda_graphs=config.cuda_graphs,
    )


def _place_text_encoder(fqn: str, config: OffloadConfig, memory: str | Mapping[str, int]) -> object:
    if config.text_encoder_layerwise_offload:
        if config.text_encoder_cpu_offload:
            _say_once(
                "text_encoder_cpu_offload=True has no effect with "
                "text_encoder_layerwise_offload=True, which streams the encoder instead."
            )
        return LayerwiseOffload(
            fqn,
            num_slots=config.num_slots,
            host_memory=memory,
            shard_transport=config.shard_transport,
        )
    return CPUExecution(fqn) if config.text_encoder_cpu_offload else Resident(fqn)


def explain_memory(stage: Stage, config: OffloadConfig, *, has_tiles: bool = True) -> str:
    """Say in which stage memory ran out and which flag would help.

    Args:
        stage: How far the video was.
        config: The flags in force.
        has_tiles: Whether the model can decode in tiles.
    """
    streamed = config.text_encoder_cpu_offload or config.text_encoder_layerwise_offload
    flags = {
        "dit_layerwise_offload=True": config.dit_layerwise_offload,
        "text_encoder_cpu_offload=True": streamed,
        "vae_cpu_offload=True": config.vae_cpu_offload,
        "image_encoder_cpu_offload=True": config.image_encoder_cpu_offload,
    }
    first = {
        Stage.IDLE: (
            "while placing the weights",
            "dit_layerwise_offload=True",
        ),
        Stage.ENCODE: ("in the encode stage", "text_encoder_cpu_offload=True"),
        Stage.DENOISE: ("in the denoise stage", "dit_layerwise_offload=True"),
        Stage.DECODE: ("in the decode stage", "vae_cpu_offload=True"),
    }
    where, best = first[stage]
    off = [flag for flag, is_on in flags.items() if not is_on]
    if best in off:
        help_ = f"Pass {best}."
    elif stage is Stage.DECODE and has_tiles and not config.vae_tiling:
        help_ = "Pass vae_tiling=True: it decodes in tiles, which changes pixels slightly."
    elif off:
        help_ = f"Pass {off[0]}."
    else:
        help_ = "Pass a smaller height, width or num_frames."
    return f"Out of GPU memory {where}. {help_}"


def _say_what_needs_a_gpu(config: OffloadConfig) -> None:
    defaults = OffloadConfig()
    for name, reason in _FOR_A_GPU.items():
        value = getattr(config, name)
        if value != getattr(defaults, name):
            _say_once(f"{name}={value!r} has no effect on the CPU: {reason}.")


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.info(message)
