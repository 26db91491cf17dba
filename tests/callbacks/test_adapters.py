"""Modules that are given tensors, or lose some, while their blocks are streamed."""

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.callbacks.conftest import engine_in
from tests.support.toys import OnFile, make_toy, sample


class Adapted(nn.Module):
    """A linear layer with another beside it, as PEFT makes them."""

    def __init__(self, base_layer: nn.Linear, seed: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.beside = nn.Linear(base_layer.in_features, base_layer.out_features)
        torch.manual_seed(seed)
        for weight in self.beside.parameters():
            weight.requires_grad_(False).normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.beside(x)


def adapt(*models, blocks=(0, 1, 3)) -> None:
    for model in models:
        for i in blocks:
            model.blocks[i].up = Adapted(model.blocks[i].up, seed=i)
        model.head = Adapted(model.head, seed=9)


def strip(*models, blocks=(0, 1, 3)) -> None:
    for model in models:
        for i in blocks:
            model.blocks[i].up = model.blocks[i].up.base_layer
        model.head = model.head.base_layer


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("memory", ["mapped", "pinned", "pageable"])
def test_what_comes_and_goes_between_runs_is_taken_over(memory, in_batches, tmp_path):
    plain = make_toy(4)
    toy = OnFile(plain, tmp_path / "toy.safetensors")
    callback = LayerwiseOffload("blocks", host_memory=memory)
    callback.attach(toy, "cpu")
    engine = engine_in(callback)
    before = engine.store.size_bytes, engine.device_bytes, engine.store.mapped_bytes
    addresses = [p.data_ptr() for p in plain_weights(toy)]
    for change in (adapt, strip, adapt, strip):
        change(toy, plain)
        for _ in range(2):
            if in_batches:
                callback.on_predict_batch_start()
            assert torch.equal(toy(sample()), plain(sample()))
            engine.check()
            if in_batches:
                callback.on_predict_batch_end()
        assert (engine.device_bytes > before[1]) == (change is adapt)
        assert engine.store.mapped_bytes == before[2]
    assert (engine.store.size_bytes, engine.device_bytes) == before[:2]
    assert [p.data_ptr() for p in plain_weights(toy)] == addresses
    callback.detach()


def plain_weights(model):
    return [p for name, p in model.named_parameters() if "blocks" in name]


def test_an_edit_of_a_weight_beside_an_adapter_is_not_lost(toy, callback):
    plain = make_toy(4)
    for model in (toy, plain):
        model(sample())
        adapt(model)
        model.blocks[1].up.base_layer.weight.data = torch.ones(24, 16)
        model.blocks[3].up.beside.weight.data.mul_(3)
    assert torch.equal(toy(sample()), plain(sample()))
    for model in (toy, plain):
        model.blocks[1].up.base_layer.weight.data += 1
        model.blocks[1].up.beside.weight.data += 1
    assert torch.equal(toy(sample()), plain(sample()))
    engine_in(callback).check()


def test_a_layer_put_in_the_place_of_another_is_taken_over(toy, callback):
    plain = make_toy(4)
    for width in (40, 8):
        for model in (toy, plain):
            torch.manual_seed(width)
            model.blocks[2].up = nn.Linear(16, width)
            model.blocks[2].down = nn.Linear(width, 16)
            model.requires_grad_(False)
        for _ in range(2):
            assert torch.equal(toy(sample()), plain(sample()))
            engine_in(callback).check()


def test_a_tensor_that_comes_to_be_shared_by_blocks_stays_on_the_device(toy, callback):
    plain = make_toy(4)
    for model in (toy, plain):
        model(sample())
        adapt(model)
        model.blocks[0].up.beside.bias = model.blocks[0].norm.bias
        model.blocks[1].norm.bias = model.blocks[0].norm.bias
    for _ in range(2):
        assert torch.equal(toy(sample()), plain(sample()))
        engine_in(callback).check()


def test_detach_leaves_what_came_in_host_memory_and_no_hook(toy, callback):
    adapt(toy)
    toy(sample())
    strip(toy)
    callback.detach()
    assert torch.equal(toy(sample()), make_toy(4)(sample()))
    assert not any(module._forward_pre_hooks for module in toy.modules())


def test_state_dict_has_the_host_values_of_what_came_while_a_block_computes(toy, callback):
    seen = {}
    adapt(toy)
    toy(sample())
    before = {k: v.data_ptr() for k, v in toy.state_dict().items()}
    toy.blocks[1].up.register_forward_pre_hook(
        lambda *_: seen.update({k: v.data_ptr() for k, v in toy.state_dict().items()})
    )
    toy(sample())
    assert seen == before
