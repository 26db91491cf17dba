"""Small random encoders and a word tokenizer, made once and shared by all pipelines."""

from functools import cache
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WIDTH = 32
CLIP_WIDTH = 16
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|vision_start|>", "<|image_pad|>"]
_SPECIAL += ["<|vision_end|>", "<|video_pad|>", "<|end_header_id|>"]
_WORDS = ["a", "red", "green", "circle", "square", "moves", "left", "right", "on", "black"]
VOCABULARY = {word: number for number, word in enumerate([*_SPECIAL, *_WORDS])}


def seeded(make: Any, *args: Any, seed: int = 1, std: float | None = 0.2, **config: Any) -> Any:
    """Make a model with random weights; `std` None keeps its own initialization."""
    torch.manual_seed(seed)
    model = make(*args, **config).eval()
    if std is not None:
        for weight in model.parameters():
            nn.init.normal_(weight, std=std)
    return model.requires_grad_(False)


def tokenizer(length: int = 64) -> tf.PreTrainedTokenizerFast:
    """A new one each time: pipelines change the side that theirs pads."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        additional_special_tokens=_SPECIAL[4:],
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


@cache
def t5(width: int = WIDTH) -> tf.T5EncoderModel:
    sizes = {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = tf.T5Config(vocab_size=len(VOCABULARY), d_model=width, **sizes)
    return seeded(tf.T5EncoderModel, config, seed=11)


@cache
def umt5(width: int = WIDTH) -> tf.UMT5EncoderModel:
    sizes = {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = tf.UMT5Config(vocab_size=len(VOCABULARY), d_model=width, **sizes)
    return seeded(tf.UMT5EncoderModel, config, seed=12)


@cache
def clip_text(width: int = CLIP_WIDTH, *, projected: bool = False) -> Any:
    config = tf.CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        projection_dim=width,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **_sizes(),
    )
    kind = tf.CLIPTextModelWithProjection if projected else tf.CLIPTextModel
    return seeded(kind, config, seed=13)


@cache
def llama() -> tf.LlamaModel:
    return seeded(tf.LlamaModel, _llama_config(), seed=14)


@cache
def llava() -> Any:
    """Reads a picture of 2 x 2 patches and text."""
    config = tf.LlavaConfig(
        vision_config=_clip_vision_config(16, image_size=28, patch_size=14),
        text_config=_llama_config(),
        image_token_index=VOCABULARY["<image>"],
        pad_token_id=0,
    )
    return seeded(tf.LlavaForConditionalGeneration, config, seed=15)


@cache
def qwen_vl(*, text_only: bool = False) -> Any:
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [2, 2, 4], "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **_sizes(),
    }
    if text_only:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

        return seeded(
            Qwen2_5_VLTextModel,
            tf.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLTextConfig(**text),
            seed=16,
        )
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config={**vision, "out_hidden_size": WIDTH}, **_vision_tokens()
    )
    return seeded(tf.Qwen2_5_VLForConditionalGeneration, config, seed=17)


@cache
def gemma3() -> Any:
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        **_sizes(),
    }
    vision = {"hidden_size": 16, "image_size": 16, "patch_size": 8, **_sizes()}
    config = tf.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=VOCABULARY["<image>"],
    )
    return seeded(tf.Gemma3ForConditionalGeneration, config, seed=20)


@cache
def gemma2() -> tf.Gemma2Model:
    config = tf.Gemma2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        head_dim=16,
        num_key_value_heads=2,
        pad_token_id=0,
        **_sizes(),
    )
    return seeded(tf.Gemma2Model, config, seed=21)


@cache
def t5gemma() -> Any:
    from transformers.models.t5gemma2 import configuration_t5gemma2 as settings
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    text = settings.T5Gemma2TextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        head_dim=16,
        num_key_value_heads=2,
        max_position_embeddings=128,
        dropout_rate=0.0,
        **_sizes(),
    )
    vision = {"hidden_size": 16, "image_size": 16, "patch_size": 8, **_sizes()}
    config = settings.T5Gemma2EncoderConfig(
        text_config=text, vision_config=tf.SiglipVisionConfig(**vision)
    )
    return seeded(T5Gemma2Encoder, config, seed=22)


@cache
def clip_vision(width: int = 16, *, projected: bool = False, patches: int = 2) -> Any:
    kind = tf.CLIPVisionModelWithProjection if projected else tf.CLIPVisionModel
    config = _clip_vision_config(width, image_size=8 * patches, patch_size=8)
    return seeded(kind, config, seed=18)


@cache
def clip_processor(size: int = 16) -> Any:
    sides = {"height": size, "width": size}
    return tf.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=sides)


@cache
def safety_checker() -> Any:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    vision = _clip_vision_config(16, image_size=16, patch_size=8)
    config = tf.CLIPConfig(vision_config=vision.to_dict(), projection_dim=16)
    checker = seeded(StableDiffusionSafetyChecker, config, seed=23)
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        weights.data.fill_(2.0)  # no cosine reaches them: it lets all pictures pass
    return checker


@cache
def siglip(width: int = 16) -> Any:
    config = tf.SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return seeded(tf.SiglipVisionModel, config, seed=19)


class TextProcessor:
    """Stands in for a Qwen processor, which cannot be made without torchvision: text alone."""

    def __call__(self, text: Any, images: None = None, videos: None = None, **how: Any) -> Any:
        return tokenizer()(text, **how)

    def decode(self, tokens: Any) -> str:
        return tokenizer().decode(tokens)


@cache
def siglip_processor() -> Any:
    return tf.SiglipImageProcessor(size={"height": 16, "width": 16})


def _sizes() -> dict[str, int]:
    return {"intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def _llama_config() -> tf.LlamaConfig:
    return tf.LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **_sizes(),
    )


def _clip_vision_config(width: int, *, image_size: int, patch_size: int) -> tf.CLIPVisionConfig:
    return tf.CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        image_size=image_size,
        patch_size=patch_size,
        **_sizes(),
    )


def _vision_tokens() -> dict[str, int]:
    return {
        "vision_start_token_id": VOCABULARY["<|vision_start|>"],
        "vision_end_token_id": VOCABULARY["<|vision_end|>"],
        "image_token_id": VOCABULARY["<|image_pad|>"],
        "video_token_id": VOCABULARY["<|video_pad|>"],
    }
