"""Mochi."""

from typing import Any

import diffusers as df

from support.recipes import texts
from support.recipes.recipe import recipe
from support.recipes.texts import WIDTH, seeded


@recipe("MochiPipeline", num_frames=7, guidance_scale=4.5, max_sequence_length=16)
def mochi() -> Any:
    transformer = seeded(
        df.MochiTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    vae = seeded(
        df.AutoencoderKLMochi,
        std=None,
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return df.MochiPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=df.FlowMatchEulerDiscreteScheduler(),
        text_encoder=texts.t5(),
        tokenizer=texts.tokenizer(),
    )
