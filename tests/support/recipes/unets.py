"""Pipelines whose denoiser is a U-Net: AnimateDiff, Stable Video Diffusion, and earlier ones."""

from typing import Any

import diffusers as df

from support.recipes import texts
from support.recipes.others import image_vae
from support.recipes.recipe import recipe
from support.recipes.texts import CLIP_WIDTH, seeded

_CHANNELS = (8, 8)
_CALL: dict[str, Any] = {"guidance_scale": 7.5, "num_frames": 4}


def unet_2d(**config: Any) -> Any:
    settings = {
        "block_out_channels": _CHANNELS,
        "layers_per_block": 2,
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": CLIP_WIDTH,
        "norm_num_groups": 2,
    }
    return seeded(df.UNet2DConditionModel, std=None, **{**settings, **config})


def motion_adapter(**config: Any) -> Any:
    return seeded(
        df.MotionAdapter,
        std=None,
        block_out_channels=_CHANNELS,
        motion_layers_per_block=2,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
        **config,
    )


def animate_parts(**own: Any) -> dict[str, Any]:
    return {
        "vae": image_vae(),
        "text_encoder": texts.clip_text(),
        "tokenizer": texts.tokenizer(),
        "unet": unet_2d(),
        "motion_adapter": motion_adapter(),
        "scheduler": df.DDIMScheduler(beta_schedule="linear", clip_sample=False),
        "feature_extractor": None,
        "image_encoder": None,
        **own,
    }


@recipe("AnimateDiffPipeline", "AnimateDiffPAGPipeline", **_CALL)
def animate_diff(name: str) -> Any:
    return getattr(df, name)(**animate_parts())


@recipe("AnimateDiffVideoToVideoPipeline", **{**_CALL, "num_frames": None}, video_path="video")
def animate_video() -> Any:
    return df.AnimateDiffVideoToVideoPipeline(**animate_parts())


def controlnet(kind: Any = df.ControlNetModel, **config: Any) -> Any:
    settings = {
        "block_out_channels": _CHANNELS,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "cross_attention_dim": CLIP_WIDTH,
        "conditioning_embedding_out_channels": (8, 8),
        "norm_num_groups": 2,
    }
    return seeded(kind, **{**settings, **config})


@recipe(
    "AnimateDiffControlNetPipeline",
    **{**_CALL, "num_frames": 9},
    height=16,
    width=16,
    pipeline_arguments={"conditioning_frames": "video"},
)
def animate_control() -> Any:
    return df.AnimateDiffControlNetPipeline(**animate_parts(controlnet=controlnet()))


@recipe(
    "AnimateDiffVideoToVideoControlNetPipeline",
    **{**_CALL, "num_frames": None},
    video_path="video",
    pipeline_arguments={"conditioning_frames": "video"},
)
def animate_video_control() -> Any:
    parts = animate_parts(controlnet=controlnet())
    return df.AnimateDiffVideoToVideoControlNetPipeline(**parts)


@recipe(
    "AnimateDiffSparseControlNetPipeline",
    **{**_CALL, "num_frames": 9},
    pipeline_arguments={"conditioning_frames": "video", "controlnet_frame_indices": [*range(9)]},
)
def animate_sparse() -> Any:
    sparse = controlnet(
        df.SparseControlNetModel,
        conditioning_channels=3,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        use_simplified_condition_embedding=False,
    )
    return df.AnimateDiffSparseControlNetPipeline(**animate_parts(controlnet=sparse))


def unet_xl() -> Any:
    return unet_2d(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + CLIP_WIDTH,
        cross_attention_dim=2 * CLIP_WIDTH,
    )


@recipe("AnimateDiffSDXLPipeline", **_CALL)
def animate_xl() -> Any:
    own = {
        "unet": unet_xl(),
        "text_encoder_2": texts.clip_text(projected=True),
        "tokenizer_2": texts.tokenizer(),
        "motion_adapter": motion_adapter(use_motion_mid_block=False),
    }
    return df.AnimateDiffSDXLPipeline(**animate_parts(**own))


@recipe("PIAPipeline", **_CALL, image_path="image")
def pia() -> Any:
    adapter = motion_adapter(conv_in_channels=9)
    return df.PIAPipeline(**animate_parts(motion_adapter=adapter))


@recipe(
    "StableVideoDiffusionPipeline",
    num_frames=2,
    fps=7,
    image_path="image",
    spelling={"fps": "fps"},
)
def stable_video() -> Any:
    unet = seeded(
        df.UNetSpatioTemporalConditionModel,
        std=None,
        block_out_channels=(32, 64),
        layers_per_block=2,
        sample_size=32,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=4,
        projection_class_embeddings_input_dim=3 * 32,
        addition_time_embed_dim=32,
    )
    vae = seeded(
        df.AutoencoderKLTemporalDecoder,
        std=None,
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
    )
    scheduler = df.EulerDiscreteScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0
    )
    return df.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=texts.clip_vision(projected=True, patches=28),  # 224 pixels are built in
        unet=unet,
        scheduler=scheduler,
        feature_extractor=texts.clip_processor(),
    )


@recipe(
    "I2VGenXLPipeline",
    **_CALL,
    image_path="image",
    pipeline_arguments={"clip_skip": None},  # its default fails with transformers 5
)
def i2vgen() -> Any:
    unet = seeded(
        df.models.unets.unet_i2vgen_xl.I2VGenXLUNet,
        std=None,
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    return df.I2VGenXLPipeline(
        vae=image_vae(),
        text_encoder=texts.clip_text(),
        tokenizer=texts.tokenizer(),
        image_encoder=texts.clip_vision(projected=True),
        feature_extractor=texts.clip_processor(),
        unet=unet,
        scheduler=df.DDIMScheduler(clip_sample=False),
    )


def text_parts() -> dict[str, Any]:
    unet = seeded(
        df.UNet3DConditionModel,
        std=None,
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=CLIP_WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    return {
        "vae": image_vae(),
        "text_encoder": texts.clip_text(),
        "tokenizer": texts.tokenizer(),
        "unet": unet,
        "scheduler": df.DDIMScheduler(clip_sample=False),
    }


@recipe("TextToVideoSDPipeline", **_CALL)
def text_to_video() -> Any:
    return df.TextToVideoSDPipeline(**text_parts())


@recipe(
    "VideoToVideoSDPipeline",
    **{**_CALL, "num_frames": None},
    height=None,
    width=None,
    video_path="video",
)
def video_to_video() -> Any:
    return df.VideoToVideoSDPipeline(**text_parts())


# It draws in three passes, which overlap: one step, one, and three.
_ZERO: dict[str, Any] = {
    **_CALL,
    "num_inference_steps": 4,
    "pipeline_arguments": {"t0": 1, "t1": 2},
    "spelling": {"num_frames": "video_length"},
}


@recipe("TextToVideoZeroPipeline", **_ZERO)
def zero_shot() -> Any:
    parts = animate_parts(safety_checker=texts.safety_checker())
    parts["feature_extractor"] = texts.clip_processor()
    del parts["motion_adapter"], parts["image_encoder"]
    return df.TextToVideoZeroPipeline(**parts)


@recipe("TextToVideoZeroSDXLPipeline", **_ZERO)
def zero_shot_xl() -> Any:
    own = {
        "unet": unet_xl(),
        "text_encoder_2": texts.clip_text(projected=True),
        "tokenizer_2": texts.tokenizer(),
    }
    parts = animate_parts(**own)
    del parts["motion_adapter"]
    return df.TextToVideoZeroSDXLPipeline(**parts)
