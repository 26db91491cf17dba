import pytest
from torch import nn

from fastvideo_lightning.offload.blocks import streamed_share


def model(num_blocks: int, *, beside: int = 0, rows: int = 0) -> nn.Module:
    """Blocks of 16 weights each, a layer beside them and a table of one column."""
    blocks = [nn.Sequential(nn.Linear(4, 4, bias=False)) for _ in range(num_blocks)]
    parts = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
    if beside:
        parts["head"] = nn.Linear(beside, 1, bias=False)
    if rows:
        parts["table"] = nn.Embedding(rows, 1)
    return parts


def test_what_lies_between_the_blocks_does_not_stream():
    assert streamed_share(model(4, beside=64)) == pytest.approx(0.5)


def test_a_block_that_the_slots_leave_over_does_not_stream():
    assert streamed_share(model(5)) == pytest.approx(0.8)
    assert streamed_share(model(5), num_slots=1) == 1.0


def test_a_table_larger_than_a_block_stays_on_the_host_and_a_small_one_does_not():
    assert streamed_share(model(4, rows=64)) == 1.0
    assert streamed_share(model(4, rows=16)) == pytest.approx(0.8)


def test_a_model_without_blocks_does_not_stream():
    assert streamed_share(nn.Linear(2, 2)) == 0.0
