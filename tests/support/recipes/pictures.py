"""Pipelines that make one picture: FLUX, Qwen-Image and Stable Diffusion 3."""

from typing import Any

import diffusers as df

from support.recipes import texts
from support.recipes.others import image_vae
from support.recipes.recipe import PICTURES, recipe
from support.recipes.texts import CLIP_WIDTH, WIDTH, seeded

_CALL: dict[str, Any] = {"num_frames": None, "max_sequence_length": 16, "into": PICTURES}
_LATENTS = 4


def vae() -> Any:
    return image_vae(
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5
    )


@recipe("FluxPipeline", guidance_scale=5.0, **_CALL)
def flux() -> Any:
    transformer = seeded(
        df.FluxTransformer2DModel,
        patch_size=1,
        in_channels=4 * _LATENTS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    return df.FluxPipeline(
        transformer=transformer,
        vae=vae(),
        scheduler=df.FlowMatchEulerDiscreteScheduler(),
        text_encoder=texts.clip_text(),
        tokenizer=texts.tokenizer(),
        text_encoder_2=texts.t5(),
        tokenizer_2=texts.tokenizer(),
    )


@recipe("QwenImagePipeline", **_CALL, pipeline_arguments={"true_cfg_scale": 1.0})
def qwen() -> Any:
    transformer = seeded(
        df.QwenImageTransformer2DModel,
        patch_size=2,
        in_channels=4 * _LATENTS,
        out_channels=_LATENTS,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    small_vae = seeded(
        df.AutoencoderKLQwenImage,
        std=None,
        base_dim=12,
        z_dim=_LATENTS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * _LATENTS,
        latents_std=[1.0] * _LATENTS,
    )
    return df.QwenImagePipeline(
        transformer=transformer,
        vae=small_vae,
        scheduler=df.FlowMatchEulerDiscreteScheduler(),
        text_encoder=texts.qwen_vl(),
        tokenizer=texts.tokenizer(),
    )


@recipe("StableDiffusion3Pipeline", guidance_scale=5.0, **_CALL)
def stable_diffusion_3() -> Any:
    transformer = seeded(
        df.SD3Transformer2DModel,
        sample_size=32,
        patch_size=1,
        in_channels=_LATENTS,
        out_channels=_LATENTS,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=2 * CLIP_WIDTH,
    )
    return df.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae(),
        scheduler=df.FlowMatchEulerDiscreteScheduler(),
        text_encoder=texts.clip_text(projected=True),
        tokenizer=texts.tokenizer(),
        text_encoder_2=texts.clip_text(projected=True),
        tokenizer_2=texts.tokenizer(),
        text_encoder_3=texts.t5(),
        tokenizer_3=texts.tokenizer(),
    )
