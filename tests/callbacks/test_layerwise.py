import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.unit import UnitState
from tests.callbacks.conftest import engine_in
from tests.support.toys import OnMeta, TensorSource, make_toy, put_on_meta, sample


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
    assert all(unit.state is not UnitState.RESIDENT for unit in engine_in(callback).units)
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
        assert all(unit.uses == 0 for unit in engine_in(callback).units)
    callback.on_exception()
    engine_in(callback).check()


def test_blocks_called_outside_of_their_model_are_right_and_see_edits(toy, callback):
    plain = make_toy(4)
    assert torch.equal(toy.blocks[1](sample()), plain.blocks[1](sample()))
    toy.blocks[1].up.weight.data.mul_(2)
    plain.blocks[1].up.weight.data.mul_(2)
    assert torch.equal(toy.blocks[1](sample()), plain.blocks[1](sample()))


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


def test_a_list_that_nobody_streams_is_read_and_stays():
    plain = make_two_lists()
    model = make_two_lists()
    put_on_meta(model)
    callback = LayerwiseOffload("pairs")
    callback.attach(model, "cpu")
    assert model.inner["single"][0].up.weight.is_meta
    for _ in range(2):
        assert torch.equal(model(sample()), plain(sample()))
    assert all(source.reads == 1 for source in model.weight_sources.values())


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


def test_blocks_that_may_be_skipped_are_not_joined_by_ranks():
    with pytest.raises(ValueError, match="skip.*Pass shard_transport='local'"):
        LayerwiseOffload("blocks", skippable=True, shard_transport="gather")
    with pytest.raises(ValueError, match="one of auto, gather, local, got 'nvlink'"):
        LayerwiseOffload("blocks", shard_transport="nvlink")


def test_a_target_without_blocks_names_the_callback_to_use(toy):
    with pytest.raises(ValueError, match=r"ModelOffload\('head'\)"):
        LayerwiseOffload("head").attach(toy, "cpu")


def with_blocks(*blocks: nn.Module) -> nn.Module:
    root = nn.Module()
    root.m = nn.Module()
    root.m.blocks = nn.ModuleList(blocks)
    return root


def linears(count: int, *, tied: bool = False) -> list[nn.Module]:
    made = [nn.Linear(4, 4) for _ in range(count)]
    for linear in made[1:] if tied else ():
        linear.weight, linear.bias = made[0].weight, made[0].bias
    return made


NOTHING_TO_STREAM = {
    "no blocks": lambda: [],
    "a list of an empty list": lambda: [nn.ModuleList()],
    "no weights": lambda: [nn.GELU(), nn.GELU()],
    "weights without elements": lambda: [nn.Module(), nn.Module()],
    "weights that all blocks share": lambda: linears(3, tied=True),
}


@pytest.mark.parametrize("kind", NOTHING_TO_STREAM)
def test_a_list_with_nothing_to_stream_is_refused_by_name_and_left_as_it_was(kind):
    root = with_blocks(*NOTHING_TO_STREAM[kind]())
    if kind == "weights without elements":
        for block in root.m.blocks:
            block.register_parameter("w", nn.Parameter(torch.empty(0, 4)))
    before = dict(vars(root))
    with pytest.raises(ValueError, match=r"'m\.blocks'\): it has no blocks with weights"):
        LayerwiseOffload("m.blocks").attach(root, "cpu")
    assert vars(root) == before


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_blocks_without_bytes_of_their_own_stand_among_those_that_stream(num_slots):
    one, other, *tied = linears(2) + linears(2, tied=True)
    blocks = [nn.GELU(), one, tied[0], nn.Identity(), other, tied[1]]
    root, x = with_blocks(*blocks), sample(4)
    plain = nn.Sequential(*blocks)(x)
    callback = LayerwiseOffload("m.blocks", num_slots=num_slots)
    callback.attach(root, "cpu")
    out = x
    for block in root.m.blocks:
        out = block(out)
    assert torch.equal(out, plain)
    callback.detach()


def test_an_unknown_target_names_the_nearest(toy):
    with pytest.raises(ValueError, match=r"no module 'block'.*'blocks'"):
        LayerwiseOffload("block").attach(toy, "cpu")


def test_two_callbacks_on_one_target_are_refused(toy, callback):
    with pytest.raises(ValueError, match="both place 'blocks'"):
        LayerwiseOffload("blocks").attach(toy, "cpu")
    assert torch.equal(toy(sample()), make_toy(4)(sample()))


class Reader(nn.Module):
    """A text model: a table much larger than a block, tied twice, and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(5000, 16)
        self.embed_tokens = nn.Embedding(5000, 16)
        self.embed_tokens.weight = self.shared.weight
        self.positions = nn.Embedding(8, 16)
        self.blocks = make_toy(4).blocks

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids) + self.positions.weight[: ids.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return x


def make_reader() -> Reader:
    torch.manual_seed(2)
    return Reader().requires_grad_(False)


def test_only_a_table_larger_than_a_block_stays_on_the_host():
    model, plain, ids = make_reader(), make_reader(), torch.tensor([[3, 4999, 0]])
    callback = LayerwiseOffload("blocks")
    callback.attach(model, "cpu")
    staying, tables = callback.attachments[0].residents
    assert {binding.fqn for binding in tables.bindings} == {"shared.weight"}
    assert {b.fqn for b in staying.bindings if not b.is_buffer} == {"positions.weight"}
    assert tables.device.type == "cpu"
    for _ in range(2):
        assert torch.equal(model(ids), plain(ids))
    callback.detach()
    assert not model.shared._forward_hooks
    assert not model.embed_tokens._forward_hooks
    assert model.embed_tokens.weight is model.shared.weight
