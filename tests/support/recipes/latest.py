"""Motif-Video, SANA-WM and Kandinsky 6."""

from typing import Any

import diffusers as df
from diffusers.guiders import AdaptiveProjectedGuidance

from support.recipes import hunyuan, ltx2, texts
from support.recipes.recipe import recipe
from support.recipes.texts import CLIP_WIDTH, WIDTH, seeded
from support.recipes.wan import vae as wan_vae

_LATENTS = 4


def motif_parts(**config: Any) -> dict[str, Any]:
    transformer = seeded(
        df.MotifVideoTransformer3DModel,
        in_channels=2 * _LATENTS + 1,
        out_channels=_LATENTS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=WIDTH,
        rope_axes_dim=(4, 4, 4),
        **config,
    )
    return {
        "scheduler": df.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "vae": wan_vae(),
        "text_encoder": texts.t5gemma(),
        "tokenizer": texts.tokenizer(),
        "transformer": transformer,
        "guider": AdaptiveProjectedGuidance(guidance_scale=3.0),
    }


@recipe("MotifVideoPipeline", max_sequence_length=16)
def motif() -> Any:
    return df.MotifVideoPipeline(**motif_parts())


@recipe("MotifVideoImage2VideoPipeline", max_sequence_length=16, image_path="image")
def motif_image() -> Any:
    processor = texts.siglip_processor()
    return df.MotifVideoImage2VideoPipeline(
        **motif_parts(image_embed_dim=16), feature_extractor=processor
    )


def kandinsky_transformer() -> Any:
    return seeded(
        df.Kandinsky6Transformer3DModel,
        in_visual_dim=_LATENTS,
        out_visual_dim=_LATENTS,
        in_text_dim=WIDTH,
        in_text_dim2=CLIP_WIDTH,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
        in_audio_dim=4,
        out_audio_dim=4,
    )


@recipe(
    "Kandinsky6TI2VAPipeline",
    guidance_scale=3.0,
    max_sequence_length=16,
    fps=24,
    spelling={"fps": "frame_rate"},
)
def kandinsky() -> Any:
    audio_vae = seeded(
        df.MMAudioVAE,
        std=None,
        mel_bins=8,
        latent_channels=4,
        hidden_channels=16,
        channel_multipliers=(1, 2),
        layers_per_block=1,
        sample_rate=8000,
        n_fft=64,
        hop_length=32,
    )
    vocoder = seeded(
        df.MMAudioVocoder,
        num_mels=8,
        upsample_initial_channel=16,
        upsample_rates=(8, 4),
        upsample_kernel_sizes=(16, 8),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3, 5),),
    )
    return df.Kandinsky6TI2VAPipeline(
        transformer=kandinsky_transformer(),
        vae=hunyuan.vae(),
        text_encoder=texts.qwen_vl(),
        tokenizer=texts.TextProcessor(),
        text_encoder_2=texts.clip_text(),
        tokenizer_2=texts.tokenizer(),
        scheduler=df.FlowMatchEulerDiscreteScheduler(shift=7.0),
        audio_vae=audio_vae,
        vocoder=vocoder,
    )


@recipe(
    "Kandinsky6SRPipeline",
    height=None,
    width=None,
    num_frames=None,
    video_path="clip",
    pipeline_arguments={"resolution_scale": 4},
)
def kandinsky_upscaler() -> Any:
    vae = seeded(
        df.Kandinsky6SRVAE,
        std=None,
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    transformer = seeded(
        df.Kandinsky6SRTransformer3DModel,
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
        tile_sizes=((128, 128),),
    )
    return df.Kandinsky6SRPipeline(
        transformer=transformer, vae=vae, scheduler=df.FlowMatchEulerDiscreteScheduler()
    )


@recipe(
    "SanaWMPipeline",
    guidance_scale=3.0,
    max_sequence_length=16,
    fps=16,
    num_frames=9,
    image_path="image",
    spelling={"fps": "fps"},
    pipeline_arguments={"action": "w-8", "chi_prompt": [], "intrinsics": [30.0, 30.0, 16.0, 16.0]},
)
def sana_world() -> Any:
    transformer = seeded(
        df.SanaWMTransformer3DModel,
        in_channels=4,
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        caption_channels=WIDTH,
        chunk_plucker_channels=12,
        mlp_ratio=2.0,
    )
    return df.SanaWMPipeline(
        tokenizer=texts.tokenizer(),
        text_encoder=texts.gemma2(),
        vae=ltx2.vae(),
        transformer=transformer,
        scheduler=df.FlowMatchEulerDiscreteScheduler(),
    )
