"""Lengths that context parallel cannot divide are told by name, at inputs and at outputs."""

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch import nn

from fastvideo_lightning.strategies.context_parallel import watch_tokens


def ltx(tokens, text_tokens=4):
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    shape = {"num_frames": 1, "height": 1, "width": tokens}
    call = {
        "hidden_states": torch.zeros(1, tokens, 8),
        "encoder_hidden_states": torch.zeros(1, text_tokens, 16),
        "timestep": torch.tensor([5]),
        "encoder_attention_mask": torch.ones(1, text_tokens),
        **shape,
    }
    return model, call


@pytest.mark.parametrize(
    ("tokens", "text_tokens", "size", "message"),
    [
        (6, 8, 4, "transformer has 6 tokens .* context_parallel=4 does not divide. .*=2, or"),
        (9, 8, 4, "transformer has 9 tokens .*Pass context_parallel=1, or another height"),
        (8, 6, 4, "transformer has 6 text tokens in this video"),
        (8, 8, 4, None),
    ],
)
def test_a_length_that_does_not_divide_is_named_with_what_does(tokens, text_tokens, size, message):
    model, call = ltx(tokens, text_tokens)
    watch_tokens("transformer", model, size)
    if message is None:
        model(**call)
        return
    with pytest.raises(ValueError, match=message):
        model(**call)


def test_what_a_module_gives_out_to_be_split_is_looked_at_before_it_is(monkeypatch):
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=8, text_dim=8
    )
    monkeypatch.setattr(model, "_cp_plan", {"rope": model._cp_plan["rope"]})
    watch_tokens("transformer", model, 2)
    call = {"timestep": torch.tensor([5]), "encoder_hidden_states": torch.zeros(1, 4, 8)}
    model(hidden_states=torch.zeros(1, 16, 1, 4, 4), **call)
    with pytest.raises(ValueError, match="transformer has 9 tokens"):
        model(hidden_states=torch.zeros(1, 16, 1, 6, 6), **call)


def test_what_diffusers_leaves_whole_is_not_looked_at():
    model = nn.Sequential(nn.Identity())
    split = __import__("diffusers").models._modeling_parallel.ContextParallelInput
    model._cp_plan = {"0": {"input": split(split_dim=1, expected_dims=3)}}
    watch_tokens("model", model, 2)
    model(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="model has 3 input"):
        model(torch.zeros(1, 3, 1))
