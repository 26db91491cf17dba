"""Lengths that context parallel cannot divide are told by the denoiser's name."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from diffusers.hooks.context_parallel import apply_context_parallel
from torch import nn

from fastvideo_lightning.strategies.context_parallel import name_denoiser


def split(model, size):
    """As diffusers splits a model for so many processes, of which none is there."""
    mesh = SimpleNamespace(size=lambda: size)
    config = SimpleNamespace(
        ulysses_anything=False, ring_anything=False, _mesh=mesh, _flattened_mesh=mesh
    )
    apply_context_parallel(model, config, model._cp_plan)
    name_denoiser("transformer", model, size)


def ltx():
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    call = {
        "hidden_states": torch.zeros(1, 6, 8),
        "encoder_hidden_states": torch.zeros(1, 8, 16),
        "timestep": torch.tensor([5]),
        "encoder_attention_mask": torch.ones(1, 8),
        "num_frames": 1,
        "height": 1,
        "width": 6,
    }
    return model, call


def wan():
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=8, text_dim=8
    )
    call = {
        "hidden_states": torch.zeros(1, 16, 1, 6, 6),
        "encoder_hidden_states": torch.zeros(1, 4, 8),
        "timestep": torch.tensor([5]),
    }
    return model, call


@pytest.mark.parametrize("make", [ltx, wan])
def test_a_length_that_does_not_divide_names_the_denoiser_and_what_to_type(make):
    model, call = make()
    split(model, 4)
    message = "transformer has a number of tokens .* context_parallel=4 does not divide. Pass"
    with pytest.raises(ValueError, match=message):
        model(**call)


def test_another_assertion_stays_what_it_is():
    class Broken(nn.Module):
        def forward(self):
            raise AssertionError("no head is left")

    model = Broken()
    name_denoiser("transformer", model, 2)
    with pytest.raises(AssertionError, match="no head is left"):
        model()
