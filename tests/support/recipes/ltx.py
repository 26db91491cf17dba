"""LTX-Video: from text, an image, conditions, and its upsampler."""

from functools import cache
from typing import Any

import diffusers as df

from support.recipes import texts
from support.recipes.recipe import recipe
from support.recipes.texts import WIDTH, seeded

_CALL: dict[str, Any] = {"num_frames": 9, "guidance_scale": 3.0, "max_sequence_length": 16}
_RATE = {"fps": "frame_rate"}


@cache
def vae() -> Any:
    return seeded(
        df.AutoencoderKLLTXVideo,
        std=None,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )


def pipeline(kind: Any) -> Any:
    transformer = seeded(
        df.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=3,
        caption_channels=WIDTH,
    )
    return kind(
        scheduler=df.FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=texts.t5(),
        tokenizer=texts.tokenizer(),
        transformer=transformer,
    )


@recipe("LTXPipeline", fps=25, spelling=_RATE, **_CALL)
def text_to_video() -> Any:
    return pipeline(df.LTXPipeline)


@recipe("LTXImageToVideoPipeline", fps=25, image_path="image", spelling=_RATE, **_CALL)
def image_to_video() -> Any:
    return pipeline(df.LTXImageToVideoPipeline)


@recipe("LTXConditionPipeline", fps=25, image_path="image", spelling=_RATE, **_CALL)
def conditions() -> Any:
    return pipeline(df.LTXConditionPipeline)


@recipe(
    "LTXI2VLongMultiPromptPipeline",
    fps=25,
    image_path="image",
    spelling={**_RATE, "image_path": "cond_image"},
    **_CALL,
)
def long_video() -> Any:
    return pipeline(df.LTXI2VLongMultiPromptPipeline)


@recipe("LTXLatentUpsamplePipeline", num_frames=None, num_inference_steps=None, video_path="video")
def upsampler() -> Any:
    model = seeded(
        df.pipelines.ltx.modeling_latent_upsampler.LTXLatentUpsamplerModel,
        in_channels=8,
        mid_channels=32,
        num_blocks_per_stage=1,
        std=None,
    )
    return df.LTXLatentUpsamplePipeline(vae=vae(), latent_upsampler=model)
