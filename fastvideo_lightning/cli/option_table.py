"""The options of `generate`, a row each: name, group, type and help, in the order of its page."""

from dataclasses import fields
from typing import Any

import click

from fastvideo_lightning.cli.option_types import BudgetType, LoraType, MappingType, PathType
from fastvideo_lightning.config import (
    CACHES,
    HOST_MEMORY,
    MAX_FPS,
    ON_OOM,
    SHARD_TRANSPORT,
    OffloadConfig,
    SamplingParams,
)

PROMPT, MODEL, VIDEO, WEIGHTS, OTHER = (
    "Prompt and output",
    "Model and machine",
    "Video (default: what suits the model)",
    "Where weights live",
    "Other",
)

Row = tuple[str, str, Any, str]

PROMPT_ROWS: list[Row] = [
    ("prompt", PROMPT, str, "What the video shows."),
    ("prompts", PROMPT, PathType(), "File with many: .txt, .jsonl, .csv, or - for stdin."),
    ("resume", PROMPT, bool, "With --prompts, leave out what the folder has already."),
    ("fail_fast", PROMPT, bool, "With --prompts, end with the first that fails."),
    ("report", PROMPT, PathType(), "File to show the run in: .html, .png or .json."),
    ("quiet", PROMPT, bool, "Say nothing but paths, warnings and errors."),
    ("negative_prompt", PROMPT, str, "What it should not show."),
    ("image_path", PROMPT, PathType(), "First frame, for models that take an image."),
    ("last_image_path", PROMPT, PathType(), "Last frame, for models that take two."),
    ("video_path", PROMPT, PathType(), "Video to start from, for models that take one."),
    ("output_path", PROMPT, PathType(), "Folder of the video; the prompt names the file."),
    ("save_video", PROMPT, bool, "Write the video."),
]

MODEL_ROWS: list[Row] = [
    ("model", MODEL, str, "Folder of a diffusers pipeline, hub id, or tiny-shapes."),
    ("revision", MODEL, str, "Branch, tag or commit on the hub."),
    ("allow_pickle", MODEL, bool, "Load pickled weights, which can run code, if need be."),
    ("variant", MODEL, str, "Variant of the weight files, such as fp16."),
    (
        "lora",
        MODEL,
        LoraType(),
        "LoRA file, folder or hub id; may be given several times. Of two experts, add @transformer "
        "or @transformer_2.",
    ),
    (
        "dtype",
        MODEL,
        click.Choice(["auto", "fp32", "bf16", "fp16", "fp8", "int8"]),
        "auto: fp32 on a CPU, on a GPU bf16 (Wan's VAE: fp32); fp8, int8: the denoiser alone.",
    ),
    (
        "accelerator",
        MODEL,
        click.Choice(["auto", "cpu", "gpu", "cuda", "mps"]),
        "Where to compute.",
    ),
    ("num_gpus", MODEL, click.IntRange(min=1), "Processes, one for each GPU."),
]

VIDEO_ROWS: list[Row] = [
    ("height", VIDEO, int, "Pixels."),
    ("width", VIDEO, int, "Pixels."),
    ("num_frames", VIDEO, int, "Frames."),
    ("fps", VIDEO, int, f"Frames per second, 1 to {MAX_FPS}."),
    ("num_inference_steps", VIDEO, int, "Denoising steps: more take longer and show more."),
    ("guidance_scale", VIDEO, float, "How closely to follow the prompt."),
    ("guidance_scale_2", VIDEO, float, "The same for the second expert of two."),
    ("scheduler", VIDEO, str, "Another of diffusers' schedulers, by the name of its class."),
    ("flow_shift", VIDEO, float, "Shift of the noise schedule."),
    ("max_sequence_length", VIDEO, int, "Tokens of the prompt that are read."),
    (
        "pipeline_arguments",
        VIDEO,
        MappingType(),
        "Further arguments of diffusers' call; a file's path stands for its content.",
    ),
    ("seed", VIDEO, int, f"Of the noise. [default: {SamplingParams.seed}]"),
]

_FLAG_TEXTS = {
    "dit_layerwise_offload": "Stream the denoiser's blocks through the GPU.",
    "use_fsdp_inference": "Shard the denoiser over the GPUs with FSDP2.",
    "dit_cpu_offload": "With FSDP, keep the shards in host memory.",
    "text_encoder_cpu_offload": "Compute the text encoder on the CPU.",
    "image_encoder_cpu_offload": "Image encoder on the GPU only during its call.",
    "vae_cpu_offload": "VAE on the GPU only during its call.",
    "pin_cpu_memory": "Pin host memory: faster transfers.",
    "text_encoder_layerwise_offload": "Stream the text encoder through the GPU instead.",
    "dit_resident_blocks": "So many of the streamed blocks stay on the GPU.",
    "num_slots": "Streamed blocks that the GPU has room for at the same time.",
    "compile": "Compile the denoiser's blocks: slower to start, faster steps.",
    "cuda_graphs": "Have the GPU repeat steps by itself: faster small steps.",
    "vae_tiling": "Decode in tiles: less memory, slightly other pixels.",
    "vae_slicing": "Decode the videos of a batch one by one.",
    "attention_backend": "One that diffusers knows, such as flash or sage.",
    "cache": "Skip computing that changes little from step to step: other pixels.",
    "host_memory": "Of the host copies; mapped: the checkpoint's file itself.",
    "shard_transport": "On several GPUs, how blocks stream: in parts, or each all.",
    "context_parallel": "GPUs that make each video together.",
    "gpu_memory_budget": "GiB that the GPU may reserve, or auto: chooses the flags left out.",
    "host_memory_budget": "GiB of host memory to hold for weights, or auto; the rest is read.",
    "on_oom": "Out of GPU memory: raise, or replan with less on the GPU and try again.",
}
_FLAG_TYPES: dict[str, Any] = {
    "shard_transport": click.Choice(SHARD_TRANSPORT),
    "host_memory": click.Choice(HOST_MEMORY),
    "cache": click.Choice(CACHES),
    "attention_backend": str,
    "dit_resident_blocks": click.IntRange(min=0),
    "num_slots": click.IntRange(min=1),
    "context_parallel": click.IntRange(min=1),
    "gpu_memory_budget": BudgetType(),
    "host_memory_budget": BudgetType(),
    "on_oom": click.Choice(ON_OOM),
}
WEIGHTS_ROWS: list[Row] = [
    (flag.name, WEIGHTS, _FLAG_TYPES.get(flag.name, bool), _FLAG_TEXTS[flag.name])
    for flag in fields(OffloadConfig)
]

REPEATABLE = {"lora"}
