"""What a CPU can show of captured calls: when one may stand for the others, and what it must leave.

The capture itself is tested in tests/gpu/test_graphs.py.
"""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.cuda_graphs import GraphedForward, kind_of
from tests.support.toys import make_toy, sample


def kind(*args, **kwargs):
    return kind_of(*tree_flatten((args, kwargs)))


def attach(num_blocks=4, **options):
    toy = make_toy(num_blocks)
    callback = LayerwiseOffload("blocks", **options)
    attachment = callback.attach(toy, "cpu")
    (group,) = attachment.engine.groups
    return toy, callback, attachment.engine, group


def test_calls_are_of_one_kind_where_shapes_and_plain_values_agree():
    x, y = torch.zeros(2, 3), torch.ones(2, 3)
    assert kind(x, scale=1.0) == kind(y, scale=1.0)
    assert kind([x], None) == kind([y], None)


@pytest.mark.parametrize(
    "other",
    [
        ((torch.zeros(2, 4),), {"scale": 1.0}),
        ((torch.zeros(3, 2).T,), {"scale": 1.0}),
        ((torch.zeros(2, 3, dtype=torch.float64),), {"scale": 1.0}),
        ((torch.zeros(2, 3),), {"scale": 2.0}),
        ((torch.zeros(2, 3),), {"scale": True}),
        ((torch.zeros(2, 3),), {"size": 1.0}),
        (([torch.zeros(2, 3)],), {"scale": 1.0}),
    ],
)
def test_calls_are_of_another_kind_where_anything_else_differs(other):
    args, kwargs = other
    assert kind(*args, **kwargs) != kind(torch.zeros(2, 3), scale=1.0)


def test_a_call_with_an_object_that_may_change_is_of_no_kind():
    assert kind(torch.zeros(1), nn.Identity()) is None


def is_at_start(engine, group):
    return engine.slots_at_start(group) is not None


@pytest.mark.parametrize(("num_blocks", "num_slots"), [(4, 1), (4, 2), (6, 3), (3, 3)])
def test_a_pass_stands_for_the_next_once_the_first_pass_of_a_run_is_over(num_blocks, num_slots):
    toy, callback, engine, group = attach(num_blocks, num_slots=num_slots)
    toy(sample())
    assert not is_at_start(engine, group)  # weights may be edited between these calls
    callback.on_predict_batch_start()
    assert not is_at_start(engine, group)  # every slot is filled, and none is left for the last
    for _ in range(3):
        toy(sample())
        assert is_at_start(engine, group)
    callback.on_predict_batch_end()
    assert not is_at_start(engine, group)


def test_a_pass_that_something_else_follows_does_not():
    toy, callback, engine, group = attach()
    callback.on_predict_batch_start()
    toy(sample())
    engine.expect(group.streamed[2], after_passes=2)
    engine.order.begin_pass()
    assert is_at_start(engine, group)  # it follows the pass after this one
    engine.order.begin_pass()
    assert not is_at_start(engine, group)


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [2, 3, 0, 1]])
def test_a_pass_in_another_order_does_once_that_is_known(order):
    toy, callback, engine, group = attach()
    callback.on_predict_batch_start()
    toy(sample())
    toy.order = order
    for _ in range(3):
        toy(sample())
    assert is_at_start(engine, group)
    assert [unit.module for unit in group.streamed] == [toy.blocks[i] for i in order]


def test_a_pass_that_leaves_a_block_out_does_not():
    toy, callback, engine, group = attach()
    callback.on_predict_batch_start()
    toy(sample())
    toy.order = [0, 2, 3]
    for _ in range(3):
        toy(sample())
    assert not is_at_start(engine, group)


def test_passes_that_begin_in_other_places_are_of_another_kind():
    toy, callback, engine, group = attach()
    callback.on_predict_batch_start()
    toy(sample())
    slots = engine.slots_at_start(group)
    leaves, spec = tree_flatten(((sample(),), {}))
    assert kind_of(leaves, spec, slots) == kind_of(leaves, spec, (engine.ring.slots[0],))
    assert kind_of(leaves, spec, slots) != kind_of(leaves, spec, (engine.ring.slots[1],))


def test_the_order_and_the_counts_are_the_same_whether_a_pass_was_made_or_repeated():
    def run(repeated: bool):
        toy, callback, engine, group = attach()
        for _ in range(2):
            callback.on_predict_batch_start()
            toy(sample())
            before = engine.stats.copies, engine.stats.bytes_copied
            if repeated:
                engine.enter(toy)
                engine.repeat(group)
                engine.leave(toy, group)
            else:
                toy(sample())
            after = engine.stats.copies, engine.stats.bytes_copied
            toy(sample())
            callback.on_predict_batch_end()
        first = [engine.order.after(unit).fqn for unit in group.streamed]
        return first, [b - a for a, b in zip(before, after, strict=True)], engine.stats.misses

    assert run(repeated=True) == run(repeated=False)


def test_without_a_run_and_with_gradients_the_forward_itself_is_called():
    calls = []

    def forward(x):
        calls.append(x)
        return x + 1

    graphed = GraphedForward(forward, "model", torch.device("cpu"))
    assert torch.equal(graphed(torch.zeros(2)), torch.ones(2))
    graphed.begin_step(is_last=False)
    for _ in range(3):
        graphed(torch.zeros(2))
    assert len(calls) == 4


def test_after_the_last_step_nothing_is_captured():
    calls = []
    graphed = GraphedForward(calls.append, "model", torch.device("cpu"))
    graphed.begin_step(is_last=False)
    graphed.begin_step(is_last=True)
    with torch.no_grad():
        for _ in range(3):
            graphed(torch.zeros(2))
    assert len(calls) == 3


def test_on_a_cpu_the_option_changes_nothing():
    toy, callback, engine, _ = attach(cuda_graphs=True)
    expected = make_toy(4)(sample())
    callback.on_predict_batch_start()
    with torch.no_grad():
        assert all(torch.equal(toy(sample()), expected) for _ in range(3))
    assert callback.attachments[0].graphed is None
    assert "forward" not in vars(toy)


@pytest.mark.parametrize(
    "other", [{"skippable": True, "shard_transport": "local"}, {"shard_transport": "gather"}]
)
def test_what_cannot_be_captured_is_refused_with_it(other):
    with pytest.raises(ValueError, match="cuda_graphs=True cannot be combined with"):
        LayerwiseOffload("blocks", cuda_graphs=True, **other)
