"""HunyuanVideo 1.0, its image-to-video kinds, Framepack, and 1.5."""

from functools import cache
from typing import Any

import diffusers as df
from diffusers.guiders import ClassifierFreeGuidance

from support.recipes import texts
from support.recipes.recipe import recipe
from support.recipes.texts import CLIP_WIDTH, WIDTH, seeded

_TEMPLATE = {"template": "{}", "crop_start": 0}
_DOWN, _UP = ["HunyuanVideoDownBlock3D"] * 4, ["HunyuanVideoUpBlock3D"] * 4


@cache
def vae(latent_channels: int = 4, levels: int = 4) -> Any:
    return seeded(
        df.AutoencoderKLHunyuanVideo,
        std=None,
        latent_channels=latent_channels,
        down_block_types=_DOWN[:levels],
        up_block_types=_UP[:levels],
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
    )


def transformer(kind: Any = df.HunyuanVideoTransformer3DModel, **config: Any) -> Any:
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 2,
        "num_single_layers": 3,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": CLIP_WIDTH,
        "rope_axes_dim": (2, 4, 4),
    }
    return seeded(kind, **{**settings, **config})


def parts(**own: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "scheduler": df.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder": texts.llama(),
        "tokenizer": texts.tokenizer(),
        "text_encoder_2": texts.clip_text(),
        "tokenizer_2": texts.tokenizer(),
        **own,
    }


@recipe(
    "HunyuanVideoPipeline",
    guidance_scale=4.5,
    max_sequence_length=16,
    pipeline_arguments={"prompt_template": _TEMPLATE},
)
def text_to_video() -> Any:
    return df.HunyuanVideoPipeline(**parts(transformer=transformer()))


@recipe(
    "HunyuanSkyreelsImageToVideoPipeline",
    image_path="image",
    guidance_scale=1.0,
    max_sequence_length=16,
    pipeline_arguments={"prompt_template": _TEMPLATE, "true_cfg_scale": 3.0},
)
def skyreels() -> Any:
    return df.HunyuanSkyreelsImageToVideoPipeline(**parts(transformer=transformer(in_channels=8)))


@recipe(
    "HunyuanVideoImageToVideoPipeline",
    image_path="image",
    guidance_scale=1.0,
    max_sequence_length=32,
    pipeline_arguments={
        "image_embed_interleave": 2,
        "prompt_template": {
            "template": "<|end_header_id|><image><|end_header_id|>{}<|end_header_id|>",
            "crop_start": 4,
            "image_emb_len": 4,
            "image_emb_start": 2,
            "image_emb_end": 6,
        },
    },
)
def image_to_video() -> Any:
    model = transformer(in_channels=9, guidance_embeds=False, image_condition_type="latent_concat")
    own = {"text_encoder": texts.llava(), "image_processor": texts.clip_processor(28)}
    return df.HunyuanVideoImageToVideoPipeline(**parts(transformer=model, **own))


@recipe(
    "HunyuanVideoFramepackPipeline",
    image_path="image",
    num_frames=9,
    guidance_scale=4.5,
    max_sequence_length=16,
    pipeline_arguments={"prompt_template": _TEMPLATE, "latent_window_size": 1},
)
def framepack() -> Any:
    model = transformer(
        df.HunyuanVideoFramepackTransformer3DModel,
        patch_size=2,
        image_condition_type=None,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    own = {"image_encoder": texts.siglip(), "feature_extractor": texts.siglip_processor()}
    return df.HunyuanVideoFramepackPipeline(**parts(transformer=model, **own))


def parts_of_15(**own: Any) -> dict[str, Any]:
    model = seeded(
        df.HunyuanVideo15Transformer3DModel,
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=16,
        rope_axes_dim=(2, 2, 4),
        target_size=32,
        task_type="i2v" if own else "t2v",
    )
    small_vae = seeded(
        df.AutoencoderKLHunyuanVideo15,
        std=None,
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    return parts(
        transformer=model,
        vae=small_vae,
        text_encoder=texts.qwen_vl(text_only=True),
        text_encoder_2=texts.t5(),
        guider=ClassifierFreeGuidance(guidance_scale=2.0),
        **own,
    )


@recipe("HunyuanVideo15Pipeline", guidance_scale=3.0, spelling={"guidance_scale": None})
def text_to_video_15() -> Any:
    return df.HunyuanVideo15Pipeline(**parts_of_15())


@recipe(
    "HunyuanVideo15ImageToVideoPipeline",
    height=None,
    width=None,
    image_path="image",
)
def image_to_video_15() -> Any:
    own = {"image_encoder": texts.siglip(), "feature_extractor": texts.siglip_processor()}
    return df.HunyuanVideo15ImageToVideoPipeline(**parts_of_15(**own))
