"""Embeddings of a class of their own: the table stays on the host, all else is on the device."""

import copy

import pytest
import torch
import transformers
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.hooks import hook_lookup
from tests.support.recipes.texts import seeded

META = torch.device("meta")
IDS = torch.tensor([[3, 4999, 0, 17]])


def gemma2(kind: type[nn.Module] = transformers.Gemma2Model) -> nn.Module:
    config = transformers.Gemma2Config(
        vocab_size=5000,
        hidden_size=32,
        head_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
    )
    return seeded(kind, config).to(torch.bfloat16)


def test_the_table_of_a_streamed_gemma_stays_on_the_host_and_bits_are_equal() -> None:
    plain = gemma2()
    model = copy.deepcopy(plain)
    callback = LayerwiseOffload("")
    callback.attach(model, "cpu")
    _, tables = callback.attachments[0].residents
    assert {binding.fqn for binding in tables.bindings} == {"embed_tokens.weight"}
    for _ in range(2):
        assert torch.equal(model(IDS).last_hidden_state, plain(IDS).last_hidden_state)
    callback.detach()
    assert not model.embed_tokens._forward_hooks
    assert not model.embed_tokens._forward_pre_hooks
    assert "forward" not in model.embed_tokens.__dict__


def test_a_table_tied_to_an_output_layer_does_not() -> None:
    model = gemma2(transformers.Gemma2ForCausalLM)
    callback = LayerwiseOffload("")
    callback.attach(model, "cpu")
    staying, *tables = callback.attachments[0].residents
    assert "model.embed_tokens.weight" in {binding.fqn for binding in staying.bindings}
    assert not any(residents.bindings for residents in tables)


def test_what_follows_the_lookup_is_computed_on_the_device() -> None:
    table = gemma2().embed_tokens
    table.embed_scale = table.embed_scale.to(META)
    handles = hook_lookup(table, "table", META)
    assert table(IDS).device == META
    with pytest.raises(IndexError):
        table(torch.tensor([5000]))
    assert (torch.ones(1) * 2).device.type == "cpu", "a lookup that failed leaves nothing behind"
    for handle in handles:
        handle.remove()
    assert not table._forward_hooks
    assert "forward" not in table.__dict__


class Mixed(nn.Embedding):
    """Ids are looked up, and mixtures of rows computed: as Ovis' table of visual tokens."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if ids.is_floating_point():
            return ids @ self.weight
        return super().forward(ids + torch.zeros_like(ids, device=self.weight.device))


def test_a_table_that_is_more_than_looked_up_comes_over_for_that() -> None:
    table = Mixed(8, 4).requires_grad_(False)
    plain = table(torch.tensor([3]))
    handles = hook_lookup(table, "table", torch.device("cpu"))
    assert torch.equal(table(torch.tensor([3])), plain)
    for handle in handles:
        handle.remove()
    hook_lookup(table, "table", META)
    assert table(torch.ones(2, 8, device=META)).shape == (2, 4)
    assert table.weight.device.type == "cpu"
