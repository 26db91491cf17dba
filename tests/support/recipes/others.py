"""Allegro, Latte, EasyAnimate, Kandinsky 5 and SANA-Video."""

from functools import cache
from typing import Any

import diffusers as df
import torch

from support.recipes import hunyuan, texts
from support.recipes.recipe import recipe
from support.recipes.texts import CLIP_WIDTH, WIDTH, seeded
from support.recipes.wan import vae as wan_vae

_LATENTS = 4


@recipe("AllegroPipeline", num_frames=8, guidance_scale=6.0, max_sequence_length=16)
def allegro() -> Any:
    transformer = seeded(
        df.AllegroTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=_LATENTS,
        out_channels=_LATENTS,
        num_layers=3,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=24,
    )
    vae = seeded(
        df.AutoencoderKLAllegro,
        std=None,
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=_LATENTS,
        layers_per_block=1,
        norm_num_groups=2,
    )
    vae.enable_tiling()  # it decodes in no other way
    vae.kernel, vae.stride = (8, 32, 32), (4, 16, 16)
    return df.AllegroPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=df.DDIMScheduler(),
        text_encoder=texts.t5(24),
        tokenizer=texts.tokenizer(),
    )


@recipe(
    "LattePipeline",
    num_frames=16,
    guidance_scale=5.0,
    spelling={"num_frames": "video_length"},
    pipeline_arguments={"clean_caption": False},
)
def latte() -> Any:
    transformer = seeded(
        df.LatteTransformer3DModel,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=_LATENTS,
        cross_attention_dim=24,
        out_channels=2 * _LATENTS,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )
    return df.LattePipeline(
        transformer=transformer,
        vae=image_vae(),
        scheduler=df.DDIMScheduler(),
        text_encoder=texts.t5(),
        tokenizer=texts.tokenizer(),
    )


@cache
def image_vae(**config: Any) -> Any:
    """The autoencoder of Stable Diffusion: pictures, one by one."""
    return seeded(
        df.AutoencoderKL,
        std=None,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=_LATENTS,
        norm_num_groups=2,
        **config,
    )


def easy_parts(in_channels: int) -> dict[str, Any]:
    transformer = seeded(
        df.EasyAnimateTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=_LATENTS,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=3,
        sample_width=16,
        sample_height=16,
        patch_size=2,
    )
    vae = seeded(
        df.AutoencoderKLMagvit,
        std=None,
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        block_out_channels=(8, 8, 8, 8),
        latent_channels=_LATENTS,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "scheduler": df.FlowMatchEulerDiscreteScheduler(),
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.tokenizer(),
    }


_EASY = {"guidance_scale": 6.0, "negative_prompt": "black"}


@recipe("EasyAnimatePipeline", **_EASY)
def easy_animate() -> Any:
    return df.EasyAnimatePipeline(**easy_parts(_LATENTS))


@recipe("EasyAnimateControlPipeline", **_EASY, pipeline_arguments={"control_video": "video"})
def easy_animate_control() -> Any:
    return df.EasyAnimateControlPipeline(**easy_parts(2 * _LATENTS))


@recipe(
    "EasyAnimateInpaintPipeline",
    **_EASY,
    pipeline_arguments={
        # This pipeline takes tensors alone.
        "video": torch.rand((1, 3, 5, 32, 32), generator=torch.Generator().manual_seed(1)),
        "mask_video": torch.ones((1, 1, 5, 32, 32)) * 255,
    },
)
def easy_animate_inpaint() -> Any:
    return df.EasyAnimateInpaintPipeline(**easy_parts(2 * _LATENTS + 1))


def kandinsky_parts(*, visual_cond: bool) -> dict[str, Any]:
    transformer = seeded(
        df.Kandinsky5Transformer3DModel,
        std=0.1,
        in_visual_dim=_LATENTS,
        in_text_dim=WIDTH,
        in_text_dim2=CLIP_WIDTH,
        time_dim=16,
        out_visual_dim=_LATENTS,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(1, 1, 2),
        visual_cond=visual_cond,
        attention_type="regular",
    )
    return {
        "transformer": transformer,
        "vae": hunyuan.vae(),
        "scheduler": df.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.TextProcessor(),
        "text_encoder_2": texts.clip_text(),
        "tokenizer_2": texts.tokenizer(),
    }


@recipe("Kandinsky5T2VPipeline", guidance_scale=3.0, max_sequence_length=16)
def kandinsky() -> Any:
    return df.Kandinsky5T2VPipeline(**kandinsky_parts(visual_cond=False))


@recipe(
    "Kandinsky5I2VPipeline",
    num_frames=17,  # fewer than five latent frames come out as not-a-number
    guidance_scale=3.0,
    max_sequence_length=16,
    image_path="image",
)
def kandinsky_image() -> Any:
    return df.Kandinsky5I2VPipeline(**kandinsky_parts(visual_cond=True))


_SANA: dict[str, Any] = {
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
    "spelling": {"num_frames": "frames"},
    "pipeline_arguments": {"complex_human_instruction": [], "use_resolution_binning": False},
}


def sana_parts(scheduler: Any) -> dict[str, Any]:
    transformer = seeded(
        df.SanaVideoTransformer3DModel,
        in_channels=_LATENTS,
        out_channels=_LATENTS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        mlp_ratio=2.5,
        sample_size=8,
        patch_size=(1, 2, 2),
        rope_max_seq_len=32,
    )
    return {
        "transformer": transformer,
        "vae": wan_vae(),
        "scheduler": scheduler,
        "text_encoder": texts.gemma2(),
        "tokenizer": texts.tokenizer(),
    }


@recipe("SanaVideoPipeline", **_SANA)
def sana() -> Any:
    return df.SanaVideoPipeline(**sana_parts(df.DPMSolverMultistepScheduler()))


@recipe("SanaImageToVideoPipeline", image_path="image", **_SANA)
def sana_image() -> Any:
    return df.SanaImageToVideoPipeline(**sana_parts(df.FlowMatchEulerDiscreteScheduler()))
