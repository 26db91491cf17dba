"""LTX-2: video and sound out of one denoiser."""

from functools import cache
from typing import Any

import diffusers as df
import torch
from diffusers.pipelines import ltx2

from support.recipes import texts
from support.recipes.recipe import recipe
from support.recipes.texts import WIDTH, seeded

# Without these, a tiny model would be asked to skip its block 28.
_GUIDANCE = {"spatio_temporal_guidance_blocks": None, "stg_scale": 0.0}
_FURTHER = {**_GUIDANCE, "audio_stg_scale": 0.0, "use_cross_timestep": False}
_CALL: dict[str, Any] = {
    "num_frames": 5,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
    "fps": 25,
}
_RATE = {"fps": "frame_rate"}


@cache
def vae(**config: Any) -> Any:
    return seeded(
        df.AutoencoderKLLTX2Video,
        std=None,
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        **config,
    )


@cache
def sound() -> dict[str, Any]:
    audio_vae = seeded(
        df.AutoencoderKLLTX2Audio,
        std=None,
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        resolution=32,
        latent_channels=2,
        mid_block_add_attention=False,
        mel_bins=8,
    )
    vocoder = seeded(
        ltx2.vocoder.LTX2Vocoder,
        in_channels=2 * 8,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    return {"audio_vae": audio_vae, "vocoder": vocoder}


@cache
def connectors() -> Any:
    return seeded(
        ltx2.connectors.LTX2TextConnectors,
        caption_channels=WIDTH,
        text_proj_in_factor=4,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
    )


def transformer(**config: Any) -> Any:
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 3,
        "caption_channels": WIDTH,
        "rope_double_precision": False,
        "rope_type": "split",
    }
    return seeded(df.LTX2VideoTransformer3DModel, **{**settings, **config})


def pipeline(kind: Any, *, scheduler: Any = None, **own: Any) -> Any:
    parts = {
        "scheduler": scheduler or df.FlowMatchEulerDiscreteScheduler(),
        "vae": vae(),
        "text_encoder": texts.gemma3(),
        "tokenizer": texts.tokenizer(),
        "connectors": connectors(),
        "transformer": transformer(),
        **sound(),
        **own,
    }
    return kind(**parts)


@recipe("LTX2Pipeline", spelling=_RATE, pipeline_arguments=_FURTHER, **_CALL)
def text_to_video() -> Any:
    return pipeline(df.LTX2Pipeline)


@recipe(
    "LTX2ImageToVideoPipeline",
    image_path="image",
    spelling=_RATE,
    pipeline_arguments={**_FURTHER, "image_crf": 0},
    **_CALL,
)
def image_to_video() -> Any:
    return pipeline(df.LTX2ImageToVideoPipeline)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def condition() -> Any:
    image = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return ltx2.LTX2VideoCondition(frames=image, index=0, strength=1.0, crf=0)


@recipe(
    "LTX2ConditionPipeline",
    "LTX2InContextPipeline",
    spelling=_RATE,
    pipeline_arguments={**_FURTHER, "conditions": condition()},
    **_CALL,
)
def conditioned(name: str) -> Any:
    return pipeline(getattr(df, name))


@recipe(
    "LTX2HDRPipeline",
    spelling=_RATE,
    pipeline_arguments={
        **_GUIDANCE,
        "reference_conditions": ltx2.pipeline_ltx2_hdr_lora.LTX2HDRReferenceCondition(
            frames=torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(1)),
            strength=1.0,
        ),
    },
    **{**_CALL, "guidance_scale": 1.0},
)
def hdr() -> Any:
    return pipeline(df.LTX2HDRPipeline)


@recipe("LTX2LatentUpsamplePipeline", num_inference_steps=None, video_path="video")
def upsampler() -> Any:
    model = seeded(
        ltx2.LTX2LatentUpsamplerModel,
        in_channels=4,
        mid_channels=32,
        num_blocks_per_stage=1,
        std=None,
    )
    return df.LTX2LatentUpsamplePipeline(vae=vae(), latent_upsampler=model)


@recipe(
    "LTX2VideoDiffusionDecodePipeline",
    height=None,
    width=None,
    num_frames=None,
    num_inference_steps=None,
    pipeline_arguments={"latents": _noise(1, 8, 1, 1, 1)},
)
def diffusion_decode() -> Any:
    return df.LTX2VideoDiffusionDecodePipeline(
        diffusion_decoder=diffusion_decoder(), scheduler=df.FlowMatchEulerDiscreteScheduler()
    )


def diffusion_decoder(latent_channels: int = 8) -> Any:
    return seeded(
        df.LTX2VideoDiffusionDecoderModel,
        out_channels=3,
        latent_channels=latent_channels,
        patch_size=2,
        decoder_head_dim=16,
        decoder_stage_channels=(64, 32, 16, 16, 16),
        decoder_stage_depths=(1, 1, 1, 1, 2),
        decoder_stage_kernels=((1, 1, 1),) * 4,
        decoder_upsample_strides=((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2)),
        decoder_upsample_channel_reductions=(2, 2, 1, 1),
        decoder_stage5_kernel=(1, 1, 1),
        decoder_t_emb_dim=32,
        spatial_compression_ratio=16,
        temporal_compression_ratio=8,
    )


@recipe(
    "LTX2DFRPipeline",
    num_frames=9,
    num_inference_steps=None,
    max_sequence_length=16,
    fps=24,
    spelling=_RATE,
    pipeline_arguments={"use_cross_timestep": False, "sigmas": [1.0, 0.5]},
)
def rendering() -> Any:
    own = {"transformer": transformer(use_keyframes_abs_pos_embedding=True)}
    return pipeline(df.LTX2DFRPipeline, **own)


@recipe(
    "LTX2DFRTemporalRefinePipeline",
    num_frames=9,
    num_inference_steps=None,
    max_sequence_length=16,
    fps=24,
    spelling=_RATE,
    pipeline_arguments={
        "use_cross_timestep": False,
        "sigmas": [1.0, 0.5],
        "latents": _noise(1, 4, 5, 16, 16),
        "keyframes_latents": _noise(1, 4, 1, 16, 16),
        "keyframe_positions": [8],
        "audio_latents": _noise(1, 2, 4, 2),
    },
)
def refinement() -> Any:
    upsampler = seeded(
        ltx2.LTX2LatentUpsamplerModel,
        in_channels=4,
        mid_channels=32,
        num_blocks_per_stage=1,
        spatial_upsample=False,
        temporal_upsample=True,
        std=None,
    )
    own = {
        "transformer": transformer(use_keyframes_abs_pos_embedding=True),
        "temporal_latent_upsampler": upsampler,
        "scheduler": df.LTXEulerAncestralRFScheduler(eta=0.5),
    }
    return pipeline(df.LTX2DFRTemporalRefinePipeline, **own)
