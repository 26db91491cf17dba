import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.toys import OnMeta, TensorSource, Toy, make_toy, sample


def engine_in(callback: LayerwiseOffload):
    return callback.attachments[0].engine


@pytest.fixture
def toy() -> Toy:
    return make_toy(4)


@pytest.fixture
def callback(toy: Toy) -> LayerwiseOffload:
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    return callback


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("target", ["", "blocks"])
def test_streamed_equals_plain_bit_for_bit(num_blocks, num_slots, target):
    toy, plain = make_toy(num_blocks), make_toy(num_blocks)
    callback = LayerwiseOffload(target, num_slots=num_slots)
    callback.attach(toy, "cpu")
    for _ in range(3):
        assert torch.equal(toy(sample()), plain(sample()))
        engine_in(callback).check()


@pytest.mark.parametrize("num_blocks", [4, 5, 7])
def test_the_number_of_streamed_blocks_is_a_multiple_of_the_slots(num_blocks):
    callback = LayerwiseOffload("blocks", num_slots=3)
    callback.attach(make_toy(num_blocks), "cpu")
    assert len(engine_in(callback).units) == num_blocks // 3 * 3


@pytest.mark.parametrize(
    ("resident_blocks", "stay"), [(0, 1), (1, 1), (2, 3), (3, 3), (6, 7), (7, 7), (9, 7)]
)
def test_at_least_so_many_blocks_stay_and_the_output_is_the_same(resident_blocks, stay):
    toy, plain = make_toy(7), make_toy(7)
    callback = LayerwiseOffload("blocks", resident_blocks=resident_blocks)
    callback.attach(toy, "cpu")
    units = engine_in(callback).units
    assert len(units) == 7 - stay
    assert engine_in(callback).device_bytes == 2 * max([u.size_bytes for u in units], default=0)
    callback.on_predict_batch_start()
    for _ in range(3):
        assert torch.equal(toy(sample()), plain(sample()))
    callback.on_predict_batch_end()
    assert engine_in(callback).stats.misses == 0


def test_residents_are_evenly_spaced():
    toy = make_toy(8)
    callback = LayerwiseOffload("blocks", resident_blocks=4)
    callback.attach(toy, "cpu")
    assert [unit.fqn[-1] for unit in engine_in(callback).units] == ["0", "2", "4", "6"]


def test_meta_parameters_are_read_once_each_and_equal_the_plain_model():
    plain = make_toy(5)
    toy = OnMeta(plain)
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    assert not any(p.is_meta for p in toy.parameters())
    assert all(source.reads == 1 for source in toy.weight_sources.values())
    assert torch.equal(toy(sample()), plain(sample()))


def test_a_source_settles_the_dtype():
    plain = make_toy(2)
    toy = OnMeta(plain)
    for name, source in toy.weight_sources.items():
        if name.startswith("blocks.") and "gate" not in name:
            toy.weight_sources[name] = TensorSource(source.tensor, torch.bfloat16)
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    assert toy.blocks[0].up.weight.dtype is torch.bfloat16
    assert torch.equal(toy.blocks[1].up.weight, plain.blocks[1].up.weight.to(torch.bfloat16))


def test_in_a_batch_the_last_block_prefetches_the_first(toy, callback):
    engine = engine_in(callback)
    callback.on_predict_batch_start()
    for _ in range(3):
        toy(sample())
    callback.on_predict_batch_end()
    assert engine.stats.misses == 0
    assert engine.stats.copies == 3 * 4 + 1


def test_order_of_blocks_is_learned_when_a_model_walks_them_backwards(toy, callback):
    toy.order = [3, 2, 1, 0]
    plain = make_toy(4)
    plain.order = [3, 2, 1, 0]
    for _ in range(3):
        assert torch.equal(toy(sample()), plain(sample()))


def test_after_an_exception_in_a_block_the_next_forward_is_right(toy, callback):
    toy.blocks[2].fails = True
    with pytest.raises(RuntimeError, match="the block failed"):
        toy(sample())
    engine_in(callback).check()
    toy.blocks[2].fails = False
    assert torch.equal(toy(sample()), make_toy(4)(sample()))


@pytest.mark.parametrize("in_batch", [False, True])
def test_after_an_interrupt_that_no_hook_sees_the_next_forward_is_right(toy, callback, in_batch):
    def interrupt(module, args):
        raise KeyboardInterrupt

    if in_batch:
        callback.on_predict_batch_start()
    for _ in range(3):
        handle = toy.blocks[2].up.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            toy(sample())
        handle.remove()
        assert torch.equal(toy(sample()), make_toy(4)(sample()))
        engine_in(callback).check()
    callback.on_exception()
    engine_in(callback).check()


def test_blocks_called_outside_of_their_model_are_right_and_see_edits(toy, callback):
    plain = make_toy(4)
    assert torch.equal(toy.blocks[1](sample()), plain.blocks[1](sample()))
    toy.blocks[1].up.weight.data.mul_(2)
    plain.blocks[1].up.weight.data.mul_(2)
    assert torch.equal(toy.blocks[1](sample()), plain.blocks[1](sample()))


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
    assert len(unit.bindings) == len({id(t) for t in toy.blocks[0].parameters()}) + 1
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


class Counting(nn.Module):
    """A block whose buffers change in the forward, in place and by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + x.mean(0)
        return x * self.weight + self.count + self.mean


def test_buffers_that_a_forward_writes_persist_as_they_do_without_offloading():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(*(Counting() for _ in range(4)))

    streamed, plain = make(), make()
    callback = LayerwiseOffload("")
    callback.attach(streamed, "cpu")
    for _ in range(3):
        assert torch.equal(streamed(sample()), plain(sample()))
    callback.detach()
    assert torch.equal(streamed[2].mean, plain[2].mean)
    assert streamed[3].count == 3


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


class TwoLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.pairs = nn.ModuleList(make_toy(3).blocks)
        self.inner = nn.ModuleDict({"single": nn.ModuleList(make_toy(2, seed=5).blocks)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in [*self.pairs, *self.inner["single"]]:
            x = block(x)
        return x


def make_two_lists() -> TwoLists:
    torch.manual_seed(3)
    return TwoLists().requires_grad_(False)


@pytest.mark.parametrize("targets", [("pairs",), ("pairs", "inner.single"), ("",)])
def test_several_block_lists_named_or_found(targets):
    model, plain = make_two_lists(), make_two_lists()
    callbacks = [LayerwiseOffload(target) for target in targets]
    for callback in callbacks:
        callback.attach(model, "cpu")
    assert len({callback.attachments[0].engine for callback in callbacks}) == 1
    for _ in range(3):
        assert torch.equal(model(sample()), plain(sample()))
        engine_in(callbacks[0]).check()
    for callback in callbacks:
        callback.detach()
    assert torch.equal(model(sample()), plain(sample()))


def test_one_callback_serves_two_modules():
    one, two = make_toy(4), make_toy(4, seed=1)
    callback = LayerwiseOffload("blocks")
    callback.attach(one, "cpu")
    callback.attach(two, "cpu")
    assert torch.equal(one(sample()), make_toy(4)(sample()))
    assert torch.equal(two(sample()), make_toy(4, seed=1)(sample()))
    callback.detach()
    assert not one._forward_hooks
    assert not two._forward_hooks


def test_a_target_without_blocks_names_the_callback_to_use(toy):
    with pytest.raises(ValueError, match=r"ModelOffload\('head'\)"):
        LayerwiseOffload("head").attach(toy, "cpu")


def test_an_unknown_target_names_the_nearest(toy):
    with pytest.raises(ValueError, match=r"no module 'block'.*'blocks'"):
        LayerwiseOffload("block").attach(toy, "cpu")


def test_two_callbacks_on_one_target_are_refused(toy, callback):
    with pytest.raises(ValueError, match="both place 'blocks'"):
        LayerwiseOffload("blocks").attach(toy, "cpu")
    assert torch.equal(toy(sample()), make_toy(4)(sample()))
