"""CogVideoX and what grew out of it."""

from functools import cache
from typing import Any

import diffusers as df
import torch

from support.recipes import texts
from support.recipes.recipe import recipe
from support.recipes.texts import WIDTH, seeded

_DOWN, _UP = ("CogVideoXDownBlock3D",) * 4, ("CogVideoXUpBlock3D",) * 4
_CALL: dict[str, Any] = {"guidance_scale": 6.0, "max_sequence_length": 16}


@cache
def vae() -> Any:
    return seeded(
        df.AutoencoderKLCogVideoX,
        std=None,
        down_block_types=_DOWN,
        up_block_types=_UP,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )


def transformer(kind: Any = df.CogVideoXTransformer3DModel, **config: Any) -> Any:
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 2,
        "text_embed_dim": WIDTH,
        "num_layers": 3,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "max_text_seq_length": 16,
    }
    return seeded(kind, **{**settings, **config})


def pipeline(kind: Any, **own: Any) -> Any:
    return kind(
        tokenizer=texts.tokenizer(),
        text_encoder=texts.t5(),
        vae=vae(),
        scheduler=df.CogVideoXDDIMScheduler(),
        **own,
    )


@recipe("CogVideoXPipeline", num_frames=9, **_CALL)
def text_to_video() -> Any:
    return pipeline(df.CogVideoXPipeline, transformer=transformer())


@recipe("CogVideoXImageToVideoPipeline", num_frames=8, image_path="image", **_CALL)
def image_to_video() -> Any:
    model = transformer(
        in_channels=8,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    return pipeline(df.CogVideoXImageToVideoPipeline, transformer=model)


@recipe("CogVideoXVideoToVideoPipeline", num_frames=None, video_path="video", **_CALL)
def video_to_video() -> Any:
    return pipeline(df.CogVideoXVideoToVideoPipeline, transformer=transformer())


@recipe(
    "CogVideoXFunControlPipeline",
    num_frames=None,
    pipeline_arguments={"control_video": "video"},
    **_CALL,
)
def control() -> Any:
    return pipeline(df.CogVideoXFunControlPipeline, transformer=transformer(in_channels=8))


@recipe(
    "ConsisIDPipeline",
    image_path="image",
    pipeline_arguments={"id_vit_hidden": [torch.ones((1, 2, 2))], "id_cond": torch.ones((1, 2))},
    **_CALL,
)
def consisid() -> Any:
    model = transformer(
        df.ConsisIDTransformer3DModel,
        in_channels=8,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
        cross_attn_interval=1,
        is_kps=False,
        is_train_face=True,
        cross_attn_dim_head=1,
        cross_attn_num_heads=1,
        LFE_id_dim=2,
        LFE_vit_dim=2,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=1,
        LFE_output_dim=21,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    return pipeline(df.ConsisIDPipeline, transformer=model)
