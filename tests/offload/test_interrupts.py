"""Ctrl-C may come between any two lines of the engine: what follows is right all the same."""

import random
from collections.abc import Iterable
from contextlib import suppress

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from tests.support.interrupter import Interrupter
from tests.support.toys import Toy, make_toy, sample


def attach(toy: Toy) -> list:
    callbacks = [LayerwiseOffload("blocks"), ModelOffload("head")]
    for callback in callbacks:
        callback.attach(toy, "cpu")
    return callbacks


def count_lines() -> int:
    toy = make_toy(4)
    attach(toy)
    toy(sample())
    with Interrupter(10**9) as never:
        toy(sample())
    return 10**9 - never.left


LINES = count_lines()


@pytest.mark.parametrize("in_batch", [False, True])
def test_after_interrupts_at_any_lines_the_next_forward_is_right(in_batch):
    expected = make_toy(4)(sample())
    numbers = random.Random(0).sample(range(1, LINES + 1), 180)
    for three in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        toy = make_toy(4)
        callbacks = attach(toy)
        engine = callbacks[0].attachments[0].engine
        tell(callbacks * in_batch, "on_predict_batch_start")
        toy(sample())
        for number in three:
            with suppress(KeyboardInterrupt), Interrupter(number):
                toy(sample())
        tell(callbacks, "on_exception")
        assert all(unit.uses == 0 for unit in engine.units), three
        engine.check()
        tell(callbacks * in_batch, "on_predict_batch_start")
        for _ in range(2):
            assert torch.equal(toy(sample()), expected), three
        engine.check()
        tell(callbacks * in_batch, "on_predict_batch_end")
        tell(reversed(callbacks), "detach")
        assert torch.equal(toy(sample()), expected), three


def tell(callbacks: Iterable, moment: str) -> None:
    for callback in callbacks:
        getattr(callback, moment)()
