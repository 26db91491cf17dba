"""Weights of bitsandbytes: 4 bits stream with their scales, 8 bits are refused by name."""

import pytest
import torch
from support import checkpoints
from torch import nn

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")

PLACEMENTS = {
    "streamed": lambda: LayerwiseOffload(""),
    "skippable": lambda: LayerwiseOffload("", skippable=True),
    "model": lambda: ModelOffload(""),
    "resident": lambda: Resident(""),
    "cpu": lambda: CPUExecution(""),
}


def four_bits(linear: nn.Linear) -> nn.Module:
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, compute_dtype=torch.float32, quant_type="nf4"
    )
    layer.support_avx512bf16_for_cpu = False  # it repacks weights, which no GPU does
    weight = linear.weight.data.clone()
    layer.weight = bnb.nn.Params4bit(weight, quant_type="nf4", module=layer)
    return layer


def eight_bits(linear: nn.Linear) -> nn.Module:
    layer = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False)
    weight = linear.weight.data.clone()
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer


def make(quantize) -> nn.Module:
    """A transformer with its blocks' linear layers as diffusers' quantizer makes them."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128}
    model = checkpoints.transformer(seed=1, num_layers=4, **sizes).requires_grad_(False)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and "blocks" in name:
            layer = quantize(linear)
            layer.bias = linear.bias
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.to("cpu"))
    return model


@torch.no_grad()
def call(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return model(
        hidden_states=torch.randn(1, 4, 2, 8, 8, generator=generator),
        timestep=torch.tensor([5]),
        encoder_hidden_states=torch.randn(1, 4, 16, generator=generator),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_4_bits_make_what_they_make_in_place(placement) -> None:
    expected = call(make(four_bits))
    model = make(four_bits)
    callback = PLACEMENTS[placement]()
    callback.attach(model, "cpu")
    for _ in range(2):
        assert torch.equal(call(model), expected)
    callback.detach()
    assert torch.equal(call(model), expected)
    assert isinstance(model.blocks[0].attn1.to_q.weight, bnb.nn.Params4bit)


def test_4_bits_move_with_their_scales_and_see_the_slot_alone() -> None:
    model = make(four_bits)
    streaming = LayerwiseOffload("")
    engine = streaming.attach(model, "cpu").engine
    seen = []

    def look(layer: nn.Module, _: object) -> None:
        state = layer.weight.quant_state
        parts = (layer.weight, state.absmax, state.code, state.state2.absmax, state.offset)
        seen.extend(part.data_ptr() for part in parts)

    for block in model.blocks:
        block.ffn.net[2].register_forward_pre_hook(look)
    call(model)
    slots = [(s.buffer.data_ptr(), s.buffer.data_ptr() + s.size_bytes) for s in engine.ring.slots]
    assert len(seen) == 4 * 5
    assert all(any(start <= address < end for start, end in slots) for address in seen)
    plain = checkpoints.transformer(
        seed=1, num_layers=1, num_attention_heads=2, attention_head_dim=32, ffn_dim=128
    )
    in_fp32 = sum(weight.numel() * 4 for weight in plain.blocks[0].parameters())
    assert engine.units[0].size_bytes < in_fp32 / 2


@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("placement", ["streamed", "model"])
def test_8_bits_are_refused_by_name(placement, is_used) -> None:
    model = make(eight_bits)
    expected = call(model) if is_used else None
    with pytest.raises(TypeError, match=r"to_\w+\.weight is a Int8Params.*CPUExecution"):
        PLACEMENTS[placement]().attach(model, "cpu")
    if is_used:
        assert torch.equal(call(model), expected)
    CPUExecution("").attach(model, "cpu")
    assert torch.isfinite(call(model)).all()
