import torch
from torch import nn

from fastvideo_lightning.offload.blocks import find_block_lists, spread
from tests.support.toys import Block, make_toy


def fqns(model: nn.Module) -> list[str]:
    return [found.fqn for found in find_block_lists(model)]


def test_the_blocks_of_a_model_are_found_and_named():
    (found,) = find_block_lists(make_toy(3), "transformer")
    assert found.fqn == "transformer.blocks"
    assert [name for name, _ in found.blocks] == [f"transformer.blocks.{i}" for i in range(3)]


def test_lists_inside_a_block_belong_to_the_block():
    block = make_toy(2)
    assert fqns(nn.ModuleDict({"outer": nn.ModuleList([block])})) == ["outer"]


def test_a_wan_transformer_has_one_list_and_its_attention_outputs_are_none():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(num_layers=3, num_attention_heads=2, attention_head_dim=12)
    assert fqns(model) == ["blocks"]


def test_a_text_encoder_has_one_list():
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=3, num_heads=2)
    with torch.device("meta"):
        assert fqns(UMT5EncoderModel(config)) == ["encoder.block"]


def test_a_chain_of_unlike_layers_is_no_list_of_blocks():
    assert fqns(nn.ModuleDict({"embed": nn.Sequential(nn.Linear(2, 2), nn.SiLU())})) == []
    assert fqns(nn.ModuleDict({"pair": nn.ModuleList([Block(8, 8), nn.Dropout()])})) == []


def test_a_child_that_weighs_next_to_nothing_beside_a_block_stays_whole():
    model = make_toy(2)
    model.encoder = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1)) for _ in range(3)))
    assert fqns(model) == ["blocks"]
    assert fqns(nn.ModuleDict({"encoder": nn.ModuleList(model.encoder)})) == ["encoder"]


def test_the_motion_encoder_that_wan_animate_calls_for_each_group_of_frames_is_one():
    from diffusers import WanAnimateTransformer3DModel

    with torch.device("meta"):
        model = WanAnimateTransformer3DModel(num_layers=2)
    assert not [fqn for fqn in fqns(model) if fqn.startswith("motion_encoder")]
    assert "blocks" in fqns(model)


def test_residents_are_spread_evenly():
    assert spread(40, 0) == set()
    assert spread(40, 4) == {5, 15, 25, 35}
    assert spread(7, 1) == {3}
    assert all(len(spread(n, k)) == k for n in range(1, 20) for k in range(n + 1))
