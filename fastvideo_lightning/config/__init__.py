"""What a user may choose: where weights live, and how a video is sampled.

`OffloadConfig` and `SamplingParams` are frozen and check themselves once, when they are made, so
nothing deeper has to. Read `offload` and `sampling`, then `conflicts`; `checks` are what they ask.
"""

from fastvideo_lightning.config.checks import (
    OF_DIFFUSERS,
    check_keywords,
    check_known,
    check_switch,
    check_text,
    nearest_name,
    spell_lists,
)
from fastvideo_lightning.config.lora import LoraChoice
from fastvideo_lightning.config.offload import (
    CACHES,
    HOST_MEMORY,
    ON_OOM,
    SHARD_TRANSPORT,
    WEIGHT_COMPRESSION,
    OffloadConfig,
)
from fastvideo_lightning.config.options import OffloadOptions, SamplingOptions
from fastvideo_lightning.config.sampling import MAX_FPS, MAX_SEED, ResolvedSampling, SamplingParams

__all__ = [
    "CACHES",
    "HOST_MEMORY",
    "MAX_FPS",
    "MAX_SEED",
    "LoraChoice",
    "OF_DIFFUSERS",
    "ON_OOM",
    "SHARD_TRANSPORT",
    "WEIGHT_COMPRESSION",
    "OffloadConfig",
    "OffloadOptions",
    "ResolvedSampling",
    "SamplingOptions",
    "SamplingParams",
    "check_keywords",
    "check_known",
    "check_switch",
    "check_text",
    "nearest_name",
    "spell_lists",
]
