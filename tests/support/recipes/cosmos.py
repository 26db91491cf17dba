"""Cosmos 1, 2 and 2.5."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import diffusers as df
import torch
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.transformers import transformer_cosmos
from diffusers.utils import is_torchvision_available
from torch import nn

from support.recipes import texts
from support.recipes.recipe import recipe
from support.recipes.texts import WIDTH, seeded
from support.recipes.wan import vae as wan_vae

_CALL: dict[str, Any] = {"guidance_scale": 3.0, "max_sequence_length": 16}
_FPS = {"fps": "fps"}
_LATENTS = 4


def _resize(image: torch.Tensor, size: list[int], interpolation: Any) -> torch.Tensor:
    return nn.functional.interpolate(image, size, mode="nearest")


if not is_torchvision_available():
    # Stands in for the one function of torchvision that Cosmos needs, for its padding mask.
    only_resize = SimpleNamespace(
        functional=SimpleNamespace(resize=_resize), InterpolationMode=SimpleNamespace(NEAREST=None)
    )
    transformer_cosmos.transforms = controlnet_cosmos.transforms = only_resize


class NoGuardrail(nn.Module):
    """Stands in for the Cosmos guardrail, a package of its own with gigabytes of weights."""

    device = torch.device("cpu")
    dtype = torch.float32

    def to(self, *args: Any, **kwargs: Any) -> "NoGuardrail":
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


@cache
def vae() -> Any:
    return seeded(
        df.AutoencoderKLCosmos,
        std=None,
        latent_channels=_LATENTS,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=2,
        patch_size=4,
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


def transformer(**config: Any) -> Any:
    settings = {
        "in_channels": _LATENTS,
        "out_channels": _LATENTS,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "mlp_ratio": 2,
        "text_embed_dim": WIDTH,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "patch_size": (1, 2, 2),
        "rope_scale": (2.0, 1.0, 1.0),
        "extra_pos_embed_type": "learnable",
    }
    return seeded(df.CosmosTransformer3DModel, **{**settings, **config})


def parts(**own: Any) -> dict[str, Any]:
    return {
        "tokenizer": texts.tokenizer(),
        "text_encoder": texts.t5(),
        "vae": vae(),
        "scheduler": _edm(),
        "safety_checker": NoGuardrail(),
        **own,
    }


def _edm() -> Any:
    return df.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"
    )


@recipe("CosmosTextToWorldPipeline", fps=30, spelling=_FPS, **_CALL)
def text_to_world() -> Any:
    return df.CosmosTextToWorldPipeline(**parts(transformer=transformer()))


@recipe("CosmosVideoToWorldPipeline", fps=30, image_path="image", spelling=_FPS, **_CALL)
def video_to_world() -> Any:
    model = transformer(in_channels=_LATENTS + 1)
    return df.CosmosVideoToWorldPipeline(**parts(transformer=model))


@recipe("Cosmos2VideoToWorldPipeline", fps=16, image_path="image", spelling=_FPS, **_CALL)
def video_to_world_2() -> Any:
    model = transformer(in_channels=_LATENTS + 1)
    scheduler = df.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    own = {"vae": wan_vae(), "scheduler": scheduler}
    return df.Cosmos2VideoToWorldPipeline(**parts(transformer=model, **own))


def parts_of_25(**own: Any) -> dict[str, Any]:
    return parts(
        vae=wan_vae(),
        scheduler=df.UniPCMultistepScheduler(),
        text_encoder=texts.qwen_vl(),
        **own,
    )


def _projection() -> dict[str, Any]:
    return {
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": 3 * WIDTH,  # the encoder's layers side by side
        "encoder_hidden_states_channels": WIDTH,
    }


@recipe("Cosmos2_5_PredictBasePipeline", **_CALL)
def predict_25() -> Any:
    model = transformer(in_channels=_LATENTS + 1, **_projection())
    return df.Cosmos2_5_PredictBasePipeline(**parts_of_25(transformer=model))


@recipe(
    "Cosmos2_5_TransferPipeline",
    pipeline_arguments={"controls": "video", "num_frames_per_chunk": 5},
    **_CALL,
)
def transfer_25() -> Any:
    image = {"img_context_dim_in": 32, "img_context_dim_out": 32}
    model = transformer(
        in_channels=_LATENTS + 1,
        controlnet_block_every_n=2,
        img_context_num_tokens=4,
        **_projection(),
        **image,
    )
    controlnet = seeded(
        df.CosmosControlNetModel,
        n_controlnet_blocks=2,
        in_channels=_LATENTS + 2,
        latent_channels=_LATENTS + 2,
        model_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        patch_size=(1, 2, 2),
        max_size=(4, 32, 32),
        rope_scale=(2.0, 1.0, 1.0),
        extra_pos_embed_type="learnable",
        **_projection(),
        **image,
    )
    return df.Cosmos2_5_TransferPipeline(**parts_of_25(transformer=model, controlnet=controlnet))


@recipe(
    "Cosmos3OmniPipeline",
    guidance_scale=3.0,
    fps=24,
    spelling=_FPS,
    pipeline_arguments={
        "use_system_prompt": False,
        "add_resolution_template": False,
        "add_duration_template": False,
    },
)
def omni() -> Any:
    model = seeded(
        df.Cosmos3OmniTransformer,
        head_dim=6,
        hidden_act="relu2",
        hidden_size=6,
        intermediate_size=12,
        latent_channel=_LATENTS,
        latent_patch_size=1,
        num_attention_heads=1,
        num_hidden_layers=3,
        num_key_value_heads=1,
        patch_latent_dim=_LATENTS,
        qk_norm_for_text=False,
        rope_axes_dim=[1, 1, 1],
        vocab_size=len(texts.VOCABULARY),
    )
    return df.Cosmos3OmniPipeline(
        transformer=model,
        text_tokenizer=texts.tokenizer(),
        vae=wan_vae(),
        scheduler=df.UniPCMultistepScheduler(),
        enable_safety_checker=False,
    )
