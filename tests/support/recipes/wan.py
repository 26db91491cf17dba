"""Wan in all its kinds, and the models that share its VAE and blocks."""

from functools import cache
from typing import Any

import diffusers as df

from support.recipes import texts
from support.recipes.recipe import recipe
from support.recipes.texts import WIDTH, seeded

_CALL: dict[str, Any] = {"guidance_scale": 3.0, "max_sequence_length": 16}
_LATENTS = 4
_IMAGE = 2 * _LATENTS + 4  # noise, the image's latents, and a mask of four


@cache
def vae(z_dim: int = _LATENTS) -> Any:
    return seeded(
        df.AutoencoderKLWan,
        std=None,
        base_dim=4,
        z_dim=z_dim,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * z_dim,
        latents_std=[1.1] * z_dim,
    )


def transformer(kind: Any = df.WanTransformer3DModel, **config: Any) -> Any:
    settings = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": _LATENTS,
        "out_channels": _LATENTS,
        "text_dim": WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 3,
        "rope_max_seq_len": 32,
    }
    merged = {**settings, **config}
    return seeded(kind, **{name: value for name, value in merged.items() if value is not None})


def parts(**own: Any) -> dict[str, Any]:
    return {
        "tokenizer": texts.tokenizer(),
        "text_encoder": texts.umt5(),
        "vae": vae(),
        "scheduler": df.FlowMatchEulerDiscreteScheduler(shift=5.0),
        **own,
    }


def clip(**config: Any) -> dict[str, Any]:
    return {
        "image_encoder": texts.clip_vision(**config),
        "image_processor": texts.clip_processor(),
    }


@recipe("WanPipeline", **_CALL)
def text_to_video() -> Any:
    return df.WanPipeline(**parts(transformer=transformer()))


@recipe("WanImageToVideoPipeline", image_path="image", **_CALL)
def image_to_video() -> Any:
    model = transformer(in_channels=_IMAGE, image_dim=16)
    return df.WanImageToVideoPipeline(**parts(transformer=model, **clip()))


@recipe("WanVideoToVideoPipeline", num_frames=None, video_path="video", **_CALL)
def video_to_video() -> Any:
    unipc = df.UniPCMultistepScheduler(flow_shift=3.0)
    return df.WanVideoToVideoPipeline(**parts(transformer=transformer(), scheduler=unipc))


@recipe(
    "WanVACEPipeline",
    num_frames=9,
    video_path="video",
    pipeline_arguments={"mask": "video"},
    **_CALL,
)
def vace() -> Any:
    model = transformer(
        df.WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=2 * _LATENTS + 64
    )
    return df.WanVACEPipeline(**parts(transformer=model))


@recipe(
    "WanAnimatePipeline",
    num_frames=None,
    image_path="image",
    pipeline_arguments={
        "pose_video": "video",
        "face_video": "video",
        "segment_frame_length": 5,
    },
    **_CALL,
)
def animate() -> Any:
    model = transformer(
        df.WanAnimateTransformer3DModel,
        num_layers=4,
        in_channels=_IMAGE,
        latent_channels=_LATENTS,
        image_dim=16,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16, "32": 16},
        motion_encoder_size=32,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return df.WanAnimatePipeline(**parts(transformer=model, **clip()))


@recipe("LucyEditPipeline", num_frames=9, video_path="video", **_CALL)
def lucy() -> Any:
    model = transformer(in_channels=2 * _LATENTS)
    return df.LucyEditPipeline(**parts(transformer=model, expand_timesteps=True))


@recipe("ChronoEditPipeline", image_path="image", **_CALL)
def chrono_edit() -> Any:
    model = transformer(df.ChronoEditTransformer3DModel, in_channels=_IMAGE, image_dim=16)
    return df.ChronoEditPipeline(**parts(transformer=model, **clip()))


@recipe("SkyReelsV2Pipeline", **_CALL)
def skyreels() -> Any:
    return df.SkyReelsV2Pipeline(**skyreels_parts())


@recipe("SkyReelsV2ImageToVideoPipeline", image_path="image", **_CALL)
def skyreels_image() -> Any:
    encoder = clip(projected=True)
    own = skyreels_parts(in_channels=_IMAGE, image_dim=16)
    return df.SkyReelsV2ImageToVideoPipeline(**own, **encoder)


@recipe("SkyReelsV2DiffusionForcingPipeline", fps=24, spelling={"fps": "fps"}, **_CALL)
def skyreels_forcing() -> Any:
    return df.SkyReelsV2DiffusionForcingPipeline(**skyreels_parts())


@recipe(
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    fps=24,
    image_path="image",
    spelling={"fps": "fps"},
    **_CALL,
)
def skyreels_forcing_image() -> Any:
    return df.SkyReelsV2DiffusionForcingImageToVideoPipeline(**skyreels_parts())


@recipe(
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    fps=24,
    num_frames=13,
    video_path="video",
    spelling={"fps": "fps"},
    pipeline_arguments={"overlap_history": 5, "base_num_frames": 9},
    **_CALL,
)
def skyreels_forcing_video() -> Any:
    return df.SkyReelsV2DiffusionForcingVideoToVideoPipeline(**skyreels_parts())


def skyreels_parts(**config: Any) -> dict[str, Any]:
    scheduler = df.UniPCMultistepScheduler(flow_shift=5.0, use_flow_sigmas=True)
    model = transformer(df.SkyReelsV2Transformer3DModel, **config)
    return parts(transformer=model, scheduler=scheduler)


@recipe("AnyFlowPipeline", **_CALL)
def anyflow() -> Any:
    model = transformer(df.AnyFlowTransformer3DModel, gate_value=0.25, deltatime_type="r")
    return df.AnyFlowPipeline(**parts(transformer=model, scheduler=_flow_map()))


@recipe("AnyFlowFARPipeline", num_frames=9, **_CALL)
def anyflow_far() -> Any:
    model = transformer(
        df.AnyFlowFARTransformer3DModel,
        compressed_patch_size=(1, 4, 4),
        full_chunk_limit=3,
        gate_value=0.25,
        deltatime_type="r",
        chunk_partition=(1, 1, 1),
    )
    return df.AnyFlowFARPipeline(**parts(transformer=model, scheduler=_flow_map()))


def _flow_map() -> Any:
    return df.FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0)


def helios_transformer() -> Any:
    return transformer(
        df.HeliosTransformer3DModel,
        rope_max_seq_len=None,
        rope_dim=(4, 4, 4),
        has_multi_term_memory_patch=True,
        guidance_cross_attn=True,
        zero_history_timestep=True,
        is_amplify_history=False,
    )


@recipe("HeliosPipeline", num_frames=9, **_CALL)
def helios() -> Any:
    scheduler = df.HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)
    return df.HeliosPipeline(**parts(transformer=helios_transformer(), scheduler=scheduler))


@recipe(
    "HeliosPyramidPipeline",
    num_frames=9,
    num_inference_steps=None,
    height=64,
    width=64,
    pipeline_arguments={"pyramid_num_inference_steps_list": [1, 1, 1]},
    **_CALL,
)
def helios_pyramid() -> Any:
    return df.HeliosPyramidPipeline(
        **parts(transformer=helios_transformer(), scheduler=df.HeliosScheduler(gamma=0.3))
    )
