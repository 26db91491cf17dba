"""Weights that change between runs, and modules that are given back as they came."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.callbacks.conftest import engine_in
from tests.support.toys import OnMeta, Toy, make_toy, sample

EDITS = {
    "copy_": lambda w: w.copy_(w * 2),
    "data.add_": lambda w: w.data.add_(1),
    "data.augmented": lambda w: setattr(w, "data", w.data + 1),
    "data.replaced": lambda w: setattr(w, "data", torch.ones_like(w)),
    "add_": lambda w: w.add_(0.5),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("block", [0, 1, 3])
@pytest.mark.parametrize("in_batches", [False, True])
def test_an_edit_of_a_weight_between_runs_is_not_lost(toy, callback, edit, block, in_batches):
    plain = make_toy(4)
    for number in range(3):
        if in_batches:
            callback.on_predict_batch_start()
        assert torch.equal(toy(sample()), plain(sample())), number
        toy(sample())
        if in_batches:
            callback.on_predict_batch_end()
        for model in (toy, plain):
            with torch.no_grad():
                EDITS[edit](model.blocks[block].up.weight)
    assert torch.equal(toy(sample()), plain(sample()))


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_between_runs_is_not_lost(toy, callback, assign):
    toy(sample())
    other = make_toy(4, seed=1)
    toy.load_state_dict(other.state_dict(), assign=assign)
    for block, source in zip(toy.blocks, other.blocks, strict=True):
        block.table.copy_(source.table)  # a buffer that state dicts leave out
    assert torch.equal(toy(sample()), other(sample()))
    engine_in(callback).check()


def test_an_optimizer_step_on_the_host_weights_is_not_lost(toy, callback):
    plain = make_toy(4)
    for model in (toy, plain):
        model(sample())
        weights = [block.down.weight for block in model.blocks]
        for i, weight in enumerate(weights):
            weight.grad = torch.full_like(weight, 0.1 * (i + 1))
        torch.optim.SGD(weights, lr=0.5).step()
    assert torch.equal(toy(sample()), plain(sample()))


def test_a_parameter_object_put_in_by_hand_is_taken_over(toy, callback):
    toy(sample())
    mine = nn.Parameter(torch.ones_like(toy.blocks[1].down.weight), requires_grad=False)
    toy.blocks[1].down.weight = mine
    plain = make_toy(4)
    plain.blocks[1].down.weight.data.fill_(1)
    assert torch.equal(toy(sample()), plain(sample()))
    assert toy.blocks[1].down.weight is mine
    callback.detach()
    assert toy.blocks[1].down.weight is mine


def test_a_weight_of_another_dtype_is_refused_by_name_with_what_to_do(toy, callback):
    toy.blocks[1].up.weight.data = toy.blocks[1].up.weight.data.double()
    with pytest.raises(RuntimeError, match=r"blocks\.1\.up\.weight .*float64.*[Dd]etach"):
        toy(sample())


def test_what_computes_wants_gradients_where_the_module_says_so(toy, callback):
    # Products choose their kernel by it, even where no gradient is recorded.
    seen: list[bool] = []
    block = toy.blocks[1]
    block.down.register_forward_pre_hook(lambda m, _: seen.append(m.weight.requires_grad))
    for wants in (False, True, False):
        toy.requires_grad_(wants)
        with torch.no_grad():
            toy(sample())
            toy(sample())
    assert seen == [False, False, True, True, False, False]


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.float64), lambda m: m.half()])
def test_casting_while_attached_is_refused(toy, callback, convert):
    with pytest.raises(RuntimeError, match=r"is being offloaded.*detach\(\)"):
        convert(toy)
    assert torch.equal(toy(sample()), make_toy(4)(sample()))


@pytest.mark.parametrize("save", [pickle.dumps, copy.deepcopy])
def test_pickling_while_attached_is_refused_and_works_after_detach(toy, callback, save):
    with pytest.raises(RuntimeError, match=r"cannot be pickled or copied.*detach\(\)"):
        save(toy)
    callback.detach()
    save(toy)


def test_state_dict_shows_host_values_even_while_a_block_computes(toy, callback):
    seen = {}

    def keep(module, args):
        seen.update({k: v.data_ptr() for k, v in toy.state_dict().items()})

    before = {k: v.data_ptr() for k, v in toy.state_dict().items()}
    toy.blocks[1].up.register_forward_pre_hook(keep)
    toy(sample())
    assert seen == before


def test_a_tensor_tied_inside_a_block_is_stored_once():
    def tie(model):
        for block in model.blocks:
            block.up.bias = block.norm.bias if block.up.bias.shape == (16,) else block.up.bias
        return model

    toy, plain = tie(make_toy(2)), tie(make_toy(2))
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    assert toy.blocks[0].up.bias is toy.blocks[0].norm.bias
    unit = engine_in(callback).units[0]
    assert len(unit.bindings) == len({id(t) for t in toy.blocks[0].parameters()})
    assert torch.equal(toy(sample()), plain(sample()))


def tied(num_blocks: int = 4) -> Toy:
    model = make_toy(num_blocks)
    for block in model.blocks:
        block.down.bias = block.norm.bias
    model.head.bias = model.embed.bias
    return model


@pytest.mark.parametrize("place", ["norm", "down"])
def test_a_tie_that_is_broken_between_runs_stays_broken(place):
    toy, plain = tied(), tied()
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    toy(sample())
    for model in (toy, plain):
        for owner in (getattr(model.blocks[1], place), model.head):
            owner.bias = nn.Parameter(torch.full((16,), 0.5), requires_grad=False)
    for _ in range(2):
        assert torch.equal(toy(sample()), plain(sample()))
        engine_in(callback).check()
    callback.detach()
    assert torch.equal(toy(sample()), plain(sample()))
    assert toy.blocks[1].norm.bias is not toy.blocks[1].down.bias


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_for_tied_weights_is_not_lost(assign):
    toy, plain, other = tied(), tied(), make_toy(4, seed=1)
    LayerwiseOffload("blocks").attach(toy, "cpu")
    toy(sample())
    for model in (toy, plain):
        model.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(toy(sample()), plain(sample()))


def test_a_tensor_shared_by_two_blocks_stays_resident():
    def tie(model):
        model.blocks[0].norm.weight = model.blocks[3].norm.weight
        model.blocks[1].norm.bias = model.head.bias
        return model

    toy, plain = tie(make_toy(4)), tie(make_toy(4))
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    names = {b.fqn for unit in engine_in(callback).units for b in unit.bindings}
    assert not names & {"blocks.0.norm.weight", "blocks.3.norm.weight", "blocks.1.norm.bias"}
    assert torch.equal(toy(sample()), plain(sample()))


def test_detach_restores_the_parameter_objects_and_leaves_no_hook(toy):
    before = {name: id(p) for name, p in toy.named_parameters()}
    attributes = set(toy.__dict__)
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    toy(sample())
    callback.detach()
    callback.detach()
    assert {name: id(p) for name, p in toy.named_parameters()} == before
    assert set(toy.__dict__) == attributes
    for module in toy.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not module._state_dict_hooks
        assert not module._forward_hooks_always_called
    assert torch.equal(toy(sample()), make_toy(4)(sample()))
    toy.double()


def test_detach_in_place_of_meta_leaves_ordinary_host_tensors():
    plain = make_toy(4)
    toy = OnMeta(plain)
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    toy(sample())
    callback.detach()
    assert all(p.device.type == "cpu" for p in toy.parameters())
    assert torch.equal(copy.deepcopy(toy)(sample()), plain(sample()))


def test_detach_frees_the_engine(toy, callback):
    engine = weakref.ref(engine_in(callback))
    toy(sample())
    callback.detach()
    del toy
    gc.collect()
    assert engine() is None or engine().store.size_bytes == 0


def test_attach_again_after_detach(toy, callback):
    callback.detach()
    callback.attach(toy, "cpu")
    assert torch.equal(toy(sample()), make_toy(4)(sample()))


def test_the_handle_that_attach_returns_detaches(toy):
    handle = LayerwiseOffload("blocks").attach(toy, "cpu")
    handle.remove()
    assert not toy.blocks[0]._forward_pre_hooks
