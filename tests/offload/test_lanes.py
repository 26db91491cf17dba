"""Two calls that pass each block together: the bits of two calls, and half of the copies."""

import contextlib
import contextvars

import numpy as np
import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.call_groups import MAX_TOUCHED
from fastvideo_lightning.offload.deferred import DeferredTensor
from tests.support.toys import make_toy, sample

NUM_BLOCKS = 8


class Guided:
    """A streamed toy within a batch, beside its plain twin."""

    def __init__(self, change=lambda toy: None, **options) -> None:
        self.plain, self.toy = make_toy(NUM_BLOCKS), make_toy(NUM_BLOCKS)
        change(self.plain)
        change(self.toy)
        self.callback = LayerwiseOffload("blocks", pair_guidance=True, **options)
        self.engine = self.callback.attach(self.toy, "cpu").engine
        self.engine.begin_run()

    def step(self, number: int, num_calls: int = 2):
        """The calls of a step; what each makes is used when all have been called."""
        with torch.no_grad():
            inputs = [sample() + 10 * number + i for i in range(num_calls)]
            expected = [self.plain(x) for x in inputs]
            outputs = [self.toy(x) for x in inputs]
            together = torch.stack([1 * output for output in outputs])
        assert torch.equal(together, torch.stack(expected))
        return outputs

    def copies(self, number: int, num_calls: int = 2) -> int:
        before = self.engine.stats.copies
        self.step(number, num_calls)
        return self.engine.stats.copies - before

    def end(self) -> None:
        self.engine.end_run()
        self.engine.check()
        self.callback.detach()


@pytest.fixture
def guided():
    made = []

    def make(*args, **options) -> Guided:
        made.append(Guided(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("resident_blocks", [0, 1])
def test_after_its_first_step_a_pair_copies_each_block_once(guided, num_slots, resident_blocks):
    toy = guided(num_slots=num_slots, resident_blocks=resident_blocks)
    first, *later = [toy.copies(number) for number in range(4)]
    streamed = len(toy.engine.groups[0].streamed)
    assert max(later) <= streamed < first


@pytest.mark.parametrize(("num_calls", "passes"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (8, 2)])
def test_up_to_four_calls_of_a_step_copy_each_block_once(guided, num_calls, passes):
    toy = guided()
    copies = [toy.copies(number, num_calls) for number in range(5)]
    assert copies[-1] <= NUM_BLOCKS * passes


def test_as_many_calls_are_one_group_as_the_last_step_had(guided):
    toy = guided()
    for num_calls in (4, 4, 4, 2, 3, 1, 4, 2, 2):
        last = toy.copies(0, num_calls)
    assert last <= NUM_BLOCKS


def test_a_result_that_is_touched_before_the_next_call_is_made_alone(guided):
    toy = guided()
    with torch.no_grad():
        for number in range(MAX_TOUCHED + 3):
            x = sample() + number
            output = toy.toy(x)
            is_deferred = isinstance(output, DeferredTensor)
            assert is_deferred == (1 <= number <= MAX_TOUCHED)
            assert output.shape == x.shape
            assert output.dtype == x.dtype
            assert torch.equal(toy.plain(x), output)


@pytest.mark.parametrize(("num_calls", "told"), [(1, True), (2, False)])
def test_where_no_calls_are_pairs_it_is_told_once(guided, caplog, num_calls, told):
    toy = guided()
    with caplog.at_level("INFO"):
        for _ in range(2):
            for number in range(3):
                toy.step(number, num_calls)
            toy.engine.end_run()
            toy.engine.begin_run()
    assert len([m for m in caplog.messages if "pair_guidance=True has no effect" in m]) == told


def test_numpy_indexing_in_place_and_iteration_see_values(guided):
    toy = guided()
    toy.step(0)
    uses = [
        lambda t: t.numpy(),
        lambda t: t[0].tolist(),
        lambda t: t.mul_(2),
        lambda t: torch.add(t, 1, out=torch.empty_like(t)),
        lambda t: np.asarray(t.detach().cpu()),
        lambda t: next(iter(t)),
        lambda t: t.float().sum().item(),
        lambda t: repr(t),
    ]
    for number, use in enumerate(uses):
        toy.step(number)
        with torch.no_grad():
            x = sample() - number
            assert str(use(toy.toy(x))) == str(use(toy.plain(x)))


def test_inputs_that_change_before_the_second_call_do_not_change_the_first(guided):
    toy = guided()
    toy.step(0)
    with torch.no_grad():
        x = sample()
        expected = toy.plain(x.clone())
        first = toy.toy(x)
        x.fill_(3)
        second = toy.toy(x)
        assert isinstance(first, DeferredTensor)
        assert torch.equal(second, toy.plain(x))
        assert torch.equal(1 * first, expected)


def test_hooks_that_are_there_for_one_call_count_for_that_call(guided):
    toy = guided()
    toy.step(0)

    def call(model, x, *, hooked: bool):
        handles = []
        if hooked:
            handles = [model.blocks[1].up.register_forward_hook(lambda m, args, out: out + 1)]
        try:
            return model(x)
        finally:
            for handle in handles:
                handle.remove()

    with torch.no_grad():
        for hooked in [(True, False), (False, True), (True, True)]:
            x = sample()
            expected = [call(toy.plain, x + i, hooked=on) for i, on in enumerate(hooked)]
            found = [call(toy.toy, x + i, hooked=on) for i, on in enumerate(hooked)]
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(1 * one, other)


@pytest.mark.parametrize("orders", [([0, 1, 3], [0, 1, 2, 3]), ([2, 1, 3], [0, 1, 2, 3, 0])])
def test_lanes_that_part_go_on_one_after_the_other(guided, orders):
    def choose(toy):
        def forward(x, own=toy.forward):
            toy.order = orders[int(x[0, 0] > 5)]
            return own(x)

        toy.forward = forward

    toy = guided(choose)
    for number in range(6):
        with torch.no_grad():
            inputs = [torch.full((2, 16), 10.0 * ((number >> i) & 1)) + number for i in range(2)]
            expected = [toy.plain(x) for x in inputs]
            outputs = [toy.toy(x) for x in inputs]
            for one, other in zip(outputs, expected, strict=True):
                assert torch.equal(1 * one, other)


@pytest.mark.parametrize("fails", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("block", [0, 2])
def test_after_an_exception_in_a_lane_all_is_right_again(guided, fails, error, block):
    failing: list[bool] = []

    def fail(toy):
        def forward(x, own=toy.blocks[block].down.forward):
            if failing and failing.pop(0):
                raise error("the block failed")
            return own(x)

        toy.blocks[block].down.forward = forward

    toy = guided(fail)
    toy.step(0)
    with torch.no_grad():
        inputs = [torch.full((2, 16), value) for value in (1.0, 2.0)]
        failing += fails
        first = toy.toy(inputs[0])
        assert isinstance(first, DeferredTensor)
        with pytest.raises(error, match="failed"):
            toy.toy(inputs[1])
        failing.clear()
        if not fails[0] and error is RuntimeError:
            assert torch.equal(toy.plain(inputs[0]), first)
        else:
            with pytest.raises((error, RuntimeError)):
                first.sum()
    toy.engine.end_run()
    toy.engine.check()
    toy.engine.begin_run()
    for number in range(3):
        toy.step(number)


def test_blocks_that_keep_state_see_the_calls_in_their_order(guided):
    def remember(toy):
        for block in toy.blocks:
            block.register_buffer("seen", torch.zeros(2, 16))

            def forward(x, block=block, own=block.forward):
                y = own(x + block.seen)
                block.seen.copy_(y)
                return y

            block.forward = forward

    toy = guided(remember)
    for number in range(4):
        toy.step(number)


def test_modes_and_context_variables_are_those_of_each_call(guided):
    scale = contextvars.ContextVar("scale", default=1.0)

    def use(toy):
        for block in toy.blocks:

            def forward(x, own=block.forward):
                return own(x * scale.get())

            block.forward = forward

    toy = guided(use)
    for number in range(4):
        outputs = []
        for model in (toy.plain, toy.toy):
            for i in range(2):
                token = scale.set(2.0 + i)
                autocast = torch.autocast("cpu", torch.bfloat16) if i else contextlib.nullcontext()
                with torch.no_grad(), autocast:
                    outputs.append(model(sample() + number))
                scale.reset(token)
        for one, other in zip(outputs[:2], outputs[2:], strict=True):
            assert torch.equal(one, 1 * other)


@pytest.mark.parametrize(
    "view", [lambda x: x[:, ::2], lambda x: x.T, lambda x: x[:1].expand(3, 16)]
)
def test_a_result_may_be_a_view_of_any_strides(guided, view):
    def cut(toy):
        toy.forward = lambda x, own=toy.forward: view(own(x))

    toy = guided(cut)
    for number in range(3):
        toy.step(number)


def test_compiled_blocks_are_passed_together(guided):
    def compile_each(toy):
        for block in toy.blocks:
            block.compile(backend="eager")

    toy = guided(compile_each)
    first, *later = [toy.copies(number) for number in range(4)]
    assert max(later) <= NUM_BLOCKS < first


def test_with_autograd_or_in_training_calls_are_made_at_once(guided):
    toy = guided()
    toy.step(0)
    output = toy.toy(sample().requires_grad_())
    assert not isinstance(output, DeferredTensor)
    output.sum().backward()
    toy.toy.train()
    with torch.no_grad():
        assert not isinstance(toy.toy(sample()), DeferredTensor)
    toy.toy.eval()


def test_outside_of_a_batch_calls_are_made_at_once(guided):
    toy = guided()
    toy.step(0)
    toy.engine.end_run()
    with torch.no_grad():
        for _ in range(3):
            assert not isinstance(toy.toy(sample()), DeferredTensor)


def test_a_call_that_is_put_off_when_a_batch_ends_is_made(guided):
    toy = guided()
    toy.step(0)
    with torch.no_grad():
        output = toy.toy(sample())
    assert isinstance(output, DeferredTensor)
    toy.engine.end_run()
    nn.init.zeros_(toy.toy.head.weight)
    assert torch.equal(toy.plain(sample()), output)


def test_a_result_that_a_second_call_takes_is_made_first(guided):
    toy = guided()
    toy.step(0)
    with torch.no_grad():
        expected = toy.plain(toy.plain(sample()))
        assert torch.equal(toy.toy(toy.toy(sample())), expected)


@pytest.mark.parametrize("other", ["skippable", "cuda_graphs"])
def test_what_looks_at_each_call_by_itself_is_refused(other):
    with pytest.raises(ValueError, match=f"pair_guidance=True .* with {other}=True: .* Leave one"):
        LayerwiseOffload("blocks", pair_guidance=True, **{other: True})
