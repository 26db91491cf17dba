"""Edits between calls, by every route, and what was there before; calls with lent weights."""

import copy

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident
from tests.support.toys import make_toy, sample

PLACEMENTS = {
    "one slot": lambda: LayerwiseOffload("", num_slots=1),
    "streamed": lambda: LayerwiseOffload(""),
    "three slots": lambda: LayerwiseOffload("", num_slots=3),
    "residents": lambda: LayerwiseOffload("", resident_blocks=2),
    "whole": lambda: ModelOffload(""),
    "resident": lambda: Resident(""),
    "cpu": lambda: CPUExecution(""),
}
placements = pytest.mark.parametrize("placement", PLACEMENTS)


def place(placement: str, model: nn.Module):
    callback = PLACEMENTS[placement]()
    callback.attach(model, "cpu")
    return callback


def replace_weight(model):
    model.blocks[1].up.weight = nn.Parameter(model.blocks[1].up.weight.detach() * 2)


def replace_transposed(model):
    weight = model.blocks[0].up.weight
    model.blocks[0].up.weight = nn.Parameter(torch.ones_like(weight.t().contiguous()).t() * 0.3)


def load_assigned(model):
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()}, assign=True)


def load_copied(model):
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()})


def load_itself(model):
    model.load_state_dict(model.state_dict(), assign=True)


def set_data(model):
    for block in model.blocks:
        block.down.weight.data = block.down.weight.data * 2
        block.table.data = block.table.data * 2


def register_again(model):
    model.blocks[2].register_buffer("table", torch.full((16,), 0.7), persistent=False)
    model.blocks[2].register_parameter("gate", nn.Parameter(torch.ones(16, dtype=torch.float64)))


def delete_and_register(model):
    del model.blocks[3].table
    model.blocks[3].register_buffer("table", torch.full((16,), 0.2))


def untie_and_tie(model):
    model.blocks[0].down.bias = model.blocks[0].norm.bias


def replace_module(model):
    model.blocks[1].down = nn.Linear(24, 16).requires_grad_(False)
    with torch.no_grad():
        model.blocks[1].down.weight.fill_(0.01)
        model.blocks[1].down.bias.fill_(0.5)


def in_inference_mode(model):
    with torch.inference_mode():
        replace_weight(model)
        model.blocks[3].up.weight.mul_(1.25)


EDITS = [
    replace_weight,
    replace_transposed,
    load_assigned,
    load_copied,
    load_itself,
    set_data,
    register_again,
    delete_and_register,
    untie_and_tie,
    replace_module,
    in_inference_mode,
]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)


@placements
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("was_called", [False, True])
def test_an_edit_is_in_the_state_dict_in_the_next_call_and_after_detach(
    placement, edit, was_called
):
    toy, plain = make_toy(4), make_toy(4)
    callback = place(placement, toy)
    if was_called:
        assert torch.equal(toy(sample()), plain(sample()))
    for model in (toy, plain):
        edit(model)
    assert same_state(toy, plain)
    before_call = copy.deepcopy(plain)
    assert torch.equal(toy(sample()), plain(sample()))
    assert same_state(toy, plain)
    for model in (toy, plain):
        edit(model)
    callback.detach()
    assert same_state(toy, plain)
    assert not same_state(toy, before_call) or edit in (
        load_itself,
        register_again,
        delete_and_register,
        untie_and_tie,
        replace_module,
        replace_transposed,
    )
    assert torch.equal(toy(sample()), plain(sample()))


@placements
def test_a_weight_that_was_replaced_for_a_while_is_itself_when_it_is_put_back(placement):
    toy, plain = make_toy(4), make_toy(4)
    callback = place(placement, toy)
    expected = plain(sample())
    assert torch.equal(toy(sample()), expected)
    first, second = toy.blocks[1].up.weight, toy.blocks[2].down.weight
    memory = second.data
    table = toy.blocks[0].table
    toy.blocks[1].up.weight = nn.Parameter(torch.zeros_like(first))
    second.data = torch.ones_like(second)
    toy.blocks[0].table = torch.ones_like(table)
    assert not torch.equal(toy(sample()), expected)
    assert torch.equal(first, plain.blocks[1].up.weight)
    toy.blocks[1].up.weight, second.data, toy.blocks[0].table = first, memory, table
    assert same_state(toy, plain)
    assert torch.equal(toy(sample()), expected)
    callback.detach()
    assert toy.blocks[1].up.weight is first
    assert torch.equal(toy(sample()), expected)


@placements
@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("part", [None, "blocks.2.", "blocks.1.up.weight"])
def test_functional_call_computes_with_what_is_lent_and_changes_nothing(placement, in_batch, part):
    toy, plain = make_toy(4), make_toy(4)
    callback = place(placement, toy)
    own = {name: id(tensor) for name, tensor in toy.named_parameters()}
    flat = torch.linspace(-1, 1, 20000).double()
    lent = {}
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        if part is None or name.startswith(part):
            values = flat[len(lent) : len(lent) + tensor.numel()].to(tensor.dtype)
            lent[name] = values.reshape(tensor.shape)
    kept = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in lent.items()}
    if in_batch:
        callback.on_predict_batch_start()
    before = toy(sample())
    for _ in range(2):
        expected = torch.func.functional_call(plain, lent, (sample(),))
        assert torch.equal(torch.func.functional_call(toy, lent, (sample(),)), expected)
        assert torch.equal(toy(sample()), before)
    if in_batch:
        callback.on_predict_batch_end()
    assert {name: id(tensor) for name, tensor in toy.named_parameters()} == own
    with torch.no_grad():
        for model in (toy, plain):
            model.blocks[2].up.weight.mul_(2)
    assert torch.equal(toy(sample()), plain(sample()))
    for name, (values, address) in kept.items():
        assert torch.equal(lent[name], values)
        assert lent[name].data_ptr() == address
    assert same_state(toy, plain)


@placements
def test_an_edit_that_no_call_has_seen_survives_a_functional_call(placement):
    toy, plain = make_toy(4), make_toy(4)
    place(placement, toy)
    toy(sample())
    for model in (toy, plain):
        set_data(model)
        replace_weight(model)
    lent = {"blocks.0.up.weight": torch.ones_like(plain.blocks[0].up.weight)}
    expected = torch.func.functional_call(plain, lent, (sample(),))
    assert torch.equal(torch.func.functional_call(toy, lent, (sample(),)), expected)
    assert torch.equal(toy(sample()), plain(sample()))


@placements
def test_gradients_reach_what_is_lent(placement):
    toy, plain = make_toy(4), make_toy(4)
    place(placement, toy)
    weight = plain.blocks[2].up.weight

    def loss(model, scale):
        lent = {"blocks.2.up.weight": weight.detach() * scale}
        return torch.func.functional_call(model, lent, (sample(),)).square().mean()

    grads = []
    for model in (toy, plain):
        scale = torch.ones((), requires_grad=True)
        loss(model, scale).backward()
        grads.append(scale.grad)
        grads.append(torch.func.grad(lambda s, model=model: loss(model, s))(torch.ones(())))
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


@placements
def test_an_ensemble_of_lent_weights_is_that_of_the_plain_model(placement):
    toy, plain = make_toy(4), make_toy(4)
    place(placement, toy)
    stacked = {
        name: torch.stack([tensor.detach(), tensor.detach() * 2])
        for name, tensor in plain.named_parameters()
    }

    x = sample()

    def run(model):
        return torch.func.vmap(lambda lent: torch.func.functional_call(model, lent, (x,)))(stacked)

    assert torch.equal(run(toy), run(plain))
    assert torch.equal(toy(sample()), plain(sample()))
