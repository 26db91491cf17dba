"""Models that call their blocks in another order than they name them."""

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.support.toys import make_toy, sample


@pytest.mark.parametrize("num_slots", [2, 3])
@pytest.mark.parametrize("order", [[4, 5, 0, 1, 2, 3], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0]])
def test_lists_that_are_called_in_another_order_than_they_are_named(order, num_slots):
    plain, toy = make_toy(6), make_toy(6)
    plain.order = toy.order = order
    callback = LayerwiseOffload("blocks", num_slots=num_slots)
    attachment = callback.attach(toy, "cpu")
    engine = attachment.engine

    def copied_and_missed(times):
        before = engine.stats.copies, engine.stats.misses
        for _ in range(times):
            assert torch.equal(toy(sample()), plain(sample()))
        engine.check()
        return engine.stats.copies - before[0], engine.stats.misses - before[1]

    callback.on_predict_batch_start()
    copied_and_missed(3)
    assert copied_and_missed(4) == (4 * 6, 0)
    assert attachment.first.module is toy.blocks[order[0]]
    callback.on_predict_batch_end()
    assert copied_and_missed(4) == (4 * 6, 0)  # nor where each call stands for itself
    callback.on_predict_batch_start()
    copied_and_missed(1)
    assert copied_and_missed(4) == (4 * 6, 0)
