"""Models in the shapes of the published ones, on meta: they weigh nothing here."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from support import checkpoints
from transformers import UMT5Config, UMT5EncoderModel

from fastvideo_lightning import VideoModule

SHAPES = {
    "wan-14b": {},
    "wan-1.3b": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
}


@cache
def make_module(name: str) -> VideoModule:
    """A Wan text-to-video module of that shape, in the dtypes it runs in on a GPU."""
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**SHAPES[name]).to(torch.bfloat16)
        encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_ff=10240, num_layers=24, num_heads=64)
        ).to(torch.bfloat16)
        vae = AutoencoderKLWan()
    kept = set(transformer._keep_in_fp32_modules)
    for fqn, weight in transformer.named_parameters():
        if kept.intersection(fqn.split(".")):
            weight.data = weight.data.float()
    parts = {**checkpoints.shared_parts(), "text_encoder": encoder, "vae": vae}
    return VideoModule.from_pipeline(WanPipeline(transformer=transformer, **parts))


@pytest.fixture(scope="session")
def wan() -> Callable[[str], VideoModule]:
    """Return the module of a name in `SHAPES`."""
    return make_module
