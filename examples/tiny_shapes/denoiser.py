"""The denoiser and the text encoder of tiny-shapes and what trains them."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .autoencoder import LATENT_CHANNELS, draw_batch, encode_whole
from .captions import canonical_caption, paraphrase
from .scenes import Scene
from .training import Bucket

TEXT_WIDTH = 64
CAPTION_TOKENS = 32
PIPELINE_TOKENS = 512  # `WanPipeline` pads every prompt with zeros to this many
FLOW_SHIFT = 3.0


def build_denoiser() -> WanTransformer3DModel:
    """4.3 M parameters, every latent number's place a token of its own."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=512,
        num_layers=8,
        rope_max_seq_len=256,
    )


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Two UMT5 layers of width 64, 90 thousand parameters."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


class PaddingBias(WanAttnProcessor):
    """Cross-attention in which one slot of zeros stands for all that the pipeline pads with.

    Equal keys share their weight, so n of them act as one whose score is raised by log n.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias: torch.Tensor | None = None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        """Diffusers' attention with our bias on the scores."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.bias, rotary_emb)


class CaptionTable:
    """Token ids of many captions per scene, on the device, so that a step can draw from them.

    Args:
        tokenizer: as `make_tokenizer` builds it.
        scenes: one row of captions each.
        per_scene: captions per scene; every third is the canonical one.
        device: where the ids go.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        scenes: list[Scene],
        *,
        per_scene: int,
        device: torch.device,
    ) -> None:
        rng = random.Random(0)
        captions = [
            canonical_caption(scene) if index % 3 == 0 else paraphrase(scene, rng, stray_words=True)
            for scene in scenes
            for index in range(per_scene)
        ]
        ids = _token_ids(tokenizer, captions).to(device)
        self._ids = ids.unflatten(0, (len(scenes), per_scene))  # [scenes, captions, tokens]
        self._empty = _token_ids(tokenizer, [""]).to(device)

    def draw(self, rows: torch.Tensor, *, drop_rate: float) -> torch.Tensor:
        """`[batch, tokens] int64`: a caption for each row, or at the drop rate the empty one."""
        column = torch.randint(self._ids.shape[1], rows.shape, device=rows.device)
        dropped = torch.rand(rows.shape, device=rows.device) < drop_rate
        return torch.where(dropped[:, None], self._empty, self._ids[rows, column])


class LatentPool:
    """Clips of trained scenes already encoded, so that the denoiser's step needs no autoencoder."""

    def __init__(self) -> None:
        self._latents: dict[Bucket, torch.Tensor] = {}
        self._rows: dict[Bucket, torch.Tensor] = {}

    @torch.no_grad()
    def fill(
        self, vae: AutoencoderKLWan, attributes: torch.Tensor, bucket: Bucket, num_batches: int
    ) -> None:
        """Draw, encode and normalise `num_batches` batches of one bucket."""
        mean, deviation = (
            torch.tensor(values, device=attributes.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        latents, rows = [], []
        for _ in range(num_batches):
            clips, drawn = draw_batch(attributes, bucket)
            moments = encode_whole(vae, clips).float()
            latents.append(((moments[:, :LATENT_CHANNELS] - mean) / deviation).bfloat16())
            rows.append(drawn)
        self._latents[bucket], self._rows[bucket] = torch.cat(latents), torch.cat(rows)

    def draw(self, bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor]:
        """One batch: latents `[batch, channels, frames, rows, columns]` and their scenes' rows."""
        latents, rows = self._latents[bucket], self._rows[bucket]
        chosen = torch.randint(len(rows), (bucket.batch,), device=rows.device)
        return latents[chosen].float(), rows[chosen]


class FlowMatching(nn.Module):
    """The loss of denoiser and text encoder: the velocity from picture to noise, squared error.

    Noise levels are even before the sampler's own shift, `s*u / (1 + (s-1)*u)` with s = 3, and
    the caption is left empty one time in ten, which is what guidance is made from.

    Args:
        denoiser: what to train.
        text_encoder: trained with it.
        captions: where prompts are drawn from.
        pool: where latents are drawn from.
    """

    def __init__(
        self,
        denoiser: WanTransformer3DModel,
        text_encoder: UMT5EncoderModel,
        captions: CaptionTable,
        pool: LatentPool,
    ) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder
        self._captions, self._pool, self._padding = captions, pool, PaddingBias()
        for block in denoiser.blocks:
            block.attn2.set_processor(self._padding)
        # Blocks compiled for all sizes at once must not see views, whose strides tell the size.
        denoiser.rope.register_forward_hook(_clone_outputs)
        denoiser.patch_embedding.register_forward_hook(_make_contiguous)

    def forward(self, bucket: Bucket) -> torch.Tensor:
        """The scalar loss on one batch of the bucket's size."""
        latents, rows = self._pool.draw(bucket)
        prompts, self._padding.bias = self._encode(self._captions.draw(rows, drop_rate=0.1))
        strata = torch.arange(bucket.batch, device=latents.device)
        even = (strata + torch.rand(bucket.batch, device=latents.device)) / bucket.batch
        sigma = FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)
        noise, level = torch.randn_like(latents), sigma.view(-1, 1, 1, 1, 1)
        velocity = self.denoiser(
            hidden_states=latents.lerp(noise, level),
            timestep=(sigma * 1000).floor(),  # the scheduler's time steps are whole numbers
            encoder_hidden_states=prompts,
            return_dict=False,
        )[0]
        return (velocity.float() - (noise - latents)).square().mean()

    def _encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts `[batch, tokens, width]`, zero behind their end, and the bias on their scores."""
        mask = ids != 0
        with torch.autocast(ids.device.type, enabled=False):
            states = self.text_encoder(ids, mask.long()).last_hidden_state * mask.unsqueeze(-1)
        lengths = mask.sum(1, keepdim=True)
        slots = torch.arange(ids.shape[1], device=ids.device)
        bias = torch.zeros_like(states[..., 0]).masked_fill(slots > lengths, -math.inf)
        padding = (PIPELINE_TOKENS - lengths).float().log()
        bias = torch.where(slots == lengths, padding, bias)
        return states, bias[:, None, None].detach()


def restore_denoiser(denoiser: WanTransformer3DModel) -> None:
    """Give the denoiser diffusers' own attention back and take the training's hooks off."""
    denoiser.rope._forward_hooks.clear()
    denoiser.patch_embedding._forward_hooks.clear()
    for block in denoiser.blocks:
        block.attn2.set_processor(WanAttnProcessor())


def _clone_outputs(
    module: nn.Module, inputs: Any, outputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return tuple(output.clone() for output in outputs)


def _make_contiguous(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.contiguous()


def _token_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    encoded = tokenizer(
        captions, padding="max_length", max_length=CAPTION_TOKENS, return_tensors="pt"
    )
    assert int(encoded.attention_mask.sum(1).max()) < CAPTION_TOKENS, "one slot must stay empty"
    return encoded.input_ids
