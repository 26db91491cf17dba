"""The options as an editor and a type checker see them: what `**flags` and `**sampling` may be.

The names and types of `OffloadConfig` and `SamplingParams`, which say what each means; a test holds
that they are the same.
"""

import os
from collections.abc import Mapping
from typing import Any, TypedDict


class OffloadOptions(TypedDict, total=False):
    """The flags, see `OffloadConfig`."""

    dit_layerwise_offload: bool
    use_fsdp_inference: bool
    dit_cpu_offload: bool
    text_encoder_cpu_offload: bool
    image_encoder_cpu_offload: bool
    vae_cpu_offload: bool
    pin_cpu_memory: bool
    text_encoder_layerwise_offload: bool
    dit_resident_blocks: int
    num_slots: int
    compile: bool
    cuda_graphs: bool
    pair_guidance: bool | str
    weight_compression: str
    vae_tiling: bool
    vae_slicing: bool
    attention_backend: str | None
    cache: str | None
    host_memory: str
    shard_transport: str
    context_parallel: int
    guidance_parallel: int
    gpu_memory_budget: float | str | None
    host_memory_budget: float | str | None
    on_oom: str


class SamplingOptions(TypedDict, total=False):
    """How a video is sampled, see `SamplingParams`."""

    negative_prompt: str | None
    height: int | None
    width: int | None
    num_frames: int | None
    fps: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_scale_2: float | None
    seed: int
    image_path: str | os.PathLike[str] | None
    last_image_path: str | os.PathLike[str] | None
    video_path: str | os.PathLike[str] | None
    scheduler: str | None
    flow_shift: float | None
    max_sequence_length: int | None
    pipeline_arguments: Mapping[str, Any] | None
