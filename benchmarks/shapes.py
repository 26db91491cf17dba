"""Wan transformers with random weights, in the shapes of the published models.

The weights come from a fixed tile of random numbers, so that two instances of a model agree bit for
bit and 28 GB are there in seconds.
"""

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

CONFIGS: dict[str, dict[str, int]] = {
    "wan-14b": {},
    "wan-1.3b": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    "wan-tiny": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 4,
        "ffn_dim": 64,
        "text_dim": 32,
    },
}

_TILE = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul_(0.02)


class RandomWeight:
    """A weight source that reads from the tile, from a place that depends on the weight's name."""

    path: Path | None = None
    offset = 0

    def __init__(self, name: str, shape: torch.Size, dtype: torch.dtype) -> None:
        self.shape = shape
        self.stored_dtype = dtype
        self._start = sum(ord(c) * (i + 1) for i, c in enumerate(name)) * 7919 % _TILE.numel()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The stored dtype."""
        return self.stored_dtype

    def read_into(self, out: torch.Tensor) -> None:
        """Copy tile after tile into ``out``."""
        flat, done, start = out.view(-1), 0, self._start
        while done < flat.numel():
            part = _TILE[start : start + flat.numel() - done]
            flat[done : done + part.numel()].copy_(part)
            done, start = done + part.numel(), 0


class RandomWan(WanTransformer3DModel):
    """A Wan transformer on meta that says where its weights come from."""

    weight_sources: dict[str, RandomWeight]


def make_transformer(name: str) -> RandomWan:
    """The transformer of that name on meta; bf16, in fp32 what Wan keeps so."""
    with torch.device("meta"):
        model = RandomWan(**CONFIGS[name]).eval().requires_grad_(False)
    model.rope = type(model.rope)(
        model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    )
    in_fp32 = tuple(model._keep_in_fp32_modules)
    model.weight_sources = {
        fqn: RandomWeight(
            fqn,
            p.shape,
            torch.float32 if any(m in fqn.split(".") for m in in_fp32) else torch.bfloat16,
        )
        for fqn, p in model.named_parameters()
    }
    return model


def streamed_bytes(model: RandomWan) -> int:
    """Bytes of the blocks, which streaming moves in every step."""
    return sum(
        s.shape.numel() * s.stored_dtype.itemsize
        for fqn, s in model.weight_sources.items()
        if fqn.startswith("blocks.")
    )


def weight_bytes(model: RandomWan) -> int:
    """Bytes of all weights in their run dtypes."""
    return sum(s.shape.numel() * s.stored_dtype.itemsize for s in model.weight_sources.values())


def make_inputs(
    model: RandomWan, frames: int, *, height: int = 480, width: int = 832, device: torch.device
) -> dict[str, torch.Tensor]:
    """Arguments of one denoising step, batch 1: ``frames`` frames of ``height`` x ``width``."""
    generator = torch.Generator().manual_seed(frames)
    latent = (1, model.config.in_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
    text = (1, 512, model.config.text_dim)
    return {
        "hidden_states": torch.randn(latent, generator=generator).to(device, torch.bfloat16),
        "timestep": torch.tensor([987.0], device=device),
        "encoder_hidden_states": torch.randn(text, generator=generator).to(device, torch.bfloat16),
    }
