"""Models that diffusers has as modular pipelines alone: Wan Animate 2, Echo, MiniMax-H3."""

from functools import cache
from typing import Any

import diffusers as df
import torch
import transformers as tf

from support.recipes import ltx2, texts, wan
from support.recipes.modular import joined
from support.recipes.recipe import recipe
from support.recipes.texts import VOCABULARY, WIDTH, seeded

_ANIMATE: dict[str, Any] = {
    "num_frames": None,
    "image_path": "image",
    "max_sequence_length": 16,
    "pipeline_arguments": {"driving_video": "video", "segment_frame_length": 5},
}


@recipe("WanAnimate2ModularPipeline", "WanAnimate2DistilledModularPipeline", **_ANIMATE)
def animate_2(name: str) -> Any:
    model = seeded(
        df.WanAnimate2Transformer3DModel,
        in_dim=12,
        dim=24,
        ffn_dim=32,
        freq_dim=16,
        text_dim=WIDTH,
        text_len=16,
        out_dim=4,
        num_heads=2,
        num_layers=3,
    )
    image_encoder = texts.clip_vision(1280, patches=28)  # width and pixels are built in
    return joined(name, wan.parts(transformer=model, image_encoder=image_encoder))


@recipe(
    "EchoModularPipeline",
    num_frames=5,
    num_inference_steps=None,
    max_sequence_length=16,
    fps=25,
    spelling={"fps": "frame_rate"},
    pipeline_arguments={"sigmas": (1.0, 0.5, 0.0)},
)
def echo() -> Any:
    return joined("EchoModularPipeline", ltx2.text_to_video())


@cache
def _qwen3_vl() -> Any:
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 51,  # the 50th is read
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_scaling": {"mrope_section": [2, 2, 4], "rope_type": "default"},
        "pad_token_id": 0,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision |= {"out_hidden_size": WIDTH, "deepstack_visual_indexes": [0]}
    ids = {n: VOCABULARY[t] for n, t in _VISION_TOKENS.items()}
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    return seeded(tf.Qwen3VLForConditionalGeneration, config, seed=24)


_VISION_TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


class _TypesOfTokens:
    """Stands in for a Qwen processor, which cannot be made without torchvision: text alone."""

    def create_mm_token_type_ids(self, token_ids: list[list[int]]) -> list[list[int]]:
        return [[0] * len(row) for row in token_ids]


@recipe("MiniMaxH3ModularPipeline", num_frames=124)  # five seconds are the least
def minimax_h3() -> Any:
    model = seeded(
        df.MiniMaxH3Transformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        hidden_size=16,
        num_layers=3,
        num_refiner_layers=1,
        ffn_dim=16,
        in_channels=4,
        audio_in_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        time_embed_hidden_dim=16,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    vae = seeded(
        df.AutoencoderKLMiniMaxH3,
        std=None,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=8,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    with torch.no_grad():  # weights that are computed of others cannot be copied with a graph
        sound = seeded(
            df.AutoencoderKLMiniMaxH3Audio,
            std=None,
            encoder_dim=4,
            latent_dim=8,
            latent_channels=4,
            num_attention_heads=2,
            decoder_dim=128,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    parts = {
        "text_encoder": _qwen3_vl(),
        "tokenizer": texts.tokenizer(),
        "processor": _TypesOfTokens(),
        "vae": vae,
        "audio_vae": sound,
        "transformer": model,
        "scheduler": df.MiniMaxH3Scheduler(),
        "audio_scheduler": df.MiniMaxH3Scheduler(shift=3.0),
    }
    return joined("MiniMaxH3ModularPipeline", parts)
