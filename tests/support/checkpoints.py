"""Small random Wan checkpoints of every kind, written by diffusers' own `save_pretrained`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ["a", "red", "green", "circle", "square", "moves", "left", "right", "on", "black"]
PROMPT = "a red circle moves right"
SIZE = {
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "num_inference_steps": 2,
    "max_sequence_length": 16,
}
_TEXT_WIDTH, _IMAGE_WIDTH, _IMAGE_TOKENS = 16, 12, 5


def write_t2v(folder: Path) -> None:
    """Wan 2.1 text-to-video."""
    save(text_pipeline(transformer=transformer(seed=1)), folder)


def write_two_experts(folder: Path) -> None:
    """Wan 2.2 A14B: the boundary lies between the two steps of `SIZE`."""
    experts = {"transformer": transformer(seed=1), "transformer_2": transformer(seed=2)}
    save(text_pipeline(**experts, boundary_ratio=0.95), folder)


def write_ti2v(folder: Path) -> None:
    """Wan 2.2 TI2V-5B: a VAE of 16x in space, one timestep per patch."""
    wide_vae = vae(
        z_dim=6,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        decoder_base_dim=8,
    )
    model = transformer(seed=1, in_channels=6, out_channels=6)
    save(text_pipeline(vae=wide_vae, transformer=model, expand_timesteps=True), folder)


def write_i2v_with_clip(folder: Path) -> None:
    """Wan 2.1 image-to-video: a CLIP image encoder feeds the denoiser."""
    model = transformer(
        seed=1, in_channels=12, image_dim=_IMAGE_WIDTH, added_kv_proj_dim=_inner_width()
    )
    save(image_pipeline(transformer=model, **clip()), folder)


def write_first_last(folder: Path) -> None:
    """Wan 2.1 with a first and a last frame."""
    model = transformer(
        seed=1,
        in_channels=12,
        image_dim=_IMAGE_WIDTH,
        added_kv_proj_dim=_inner_width(),
        pos_embed_seq_len=2 * _IMAGE_TOKENS,
    )
    save(image_pipeline(transformer=model, **clip()), folder)


def write_i2v_without_clip(folder: Path) -> None:
    """Wan 2.2 A14B image-to-video: no image encoder, two experts."""
    experts = {
        "transformer": transformer(seed=1, in_channels=12),
        "transformer_2": transformer(seed=2, in_channels=12),
    }
    save(image_pipeline(**experts, boundary_ratio=0.95), folder)


WRITERS: dict[str, Callable[[Path], None]] = {
    "t2v": write_t2v,
    "two_experts": write_two_experts,
    "ti2v": write_ti2v,
    "i2v_clip": write_i2v_with_clip,
    "i2v": write_i2v_without_clip,
    "first_last": write_first_last,
}


def write_image(path: Path, *, size: tuple[int, int] = (40, 30)) -> Path:
    """Write a small picture with a colour of its own in every pixel."""
    width, height = size
    image = Image.new("RGB", size)
    image.putdata(
        [(x * 5 % 256, y * 7 % 256, (x + y) % 256) for y in range(height) for x in range(width)]
    )
    image.save(path)
    return path


def save(pipeline: DiffusionPipeline, folder: Path) -> None:
    pipeline.save_pretrained(folder)


def text_pipeline(**parts: Any) -> WanPipeline:
    return WanPipeline(**{**shared_parts(), **parts})


def image_pipeline(**parts: Any) -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(**{**shared_parts(), **parts})


def shared_parts() -> dict[str, Any]:
    return {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder(),
        "vae": vae(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def transformer(*, seed: int, **config: Any) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    settings = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": _TEXT_WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return randomized(WanTransformer3DModel(**{**settings, **config}))


def vae(**config: Any) -> AutoencoderKLWan:
    torch.manual_seed(3)
    settings = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    settings.update(config)
    z_dim = settings["z_dim"]
    settings["latents_mean"] = [0.1 * i for i in range(z_dim)]
    settings["latents_std"] = [1.0 + 0.1 * i for i in range(z_dim)]
    return AutoencoderKLWan(**settings)


def text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(4)
    config = UMT5Config(
        vocab_size=len(WORDS) + 2,
        d_model=_TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return randomized(UMT5EncoderModel(config))


def clip() -> dict[str, Any]:
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=_IMAGE_WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}


def tokenizer() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<unk>", *WORDS]
    vocabulary = {word: number for number, word in enumerate(names)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def randomized(model: Any) -> Any:
    """Give every weight a value of its own: a norm of ones would hide that it was not read."""
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


def _inner_width() -> int:
    return 24


def weights_of(folder: Path, component: str = "transformer") -> Path:
    """Return the safetensors file of a component."""
    return next((folder / component).glob("*.safetensors"))
