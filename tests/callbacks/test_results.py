"""Blocks that give out their own weights, or views of them, and blocks that keep them."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from fastvideo_lightning.offload.results import apart_from, lies_in

MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}


@dataclass
class Output:
    sample: torch.Tensor


GIVEN = {
    "parameter": lambda block: block.position,
    "view": lambda block: block.position[1:3],
    "columns": lambda block: block.position[:, 1:3].t(),
    "expanded": lambda block: block.position[:1].expand(5, 4),
    "unaligned": lambda block: block.bytes[3:],
    "dictionary": lambda block: {"a": [block.position[0], 3, None], "b": (block.table,)},
    "object": lambda block: Output(block.position[2]),
    "buffer": lambda block: block.table[1:],
    "detached": lambda block: block.position.detach(),
    "data": lambda block: block.position.data,
}


class Block(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.position = nn.Parameter(torch.randn(6, 4))
        self.bytes = nn.Parameter(torch.arange(9, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("table", torch.randn(5))
        self.give = give

    def forward(self, x):
        return self.linear(x), self.give(self)


class Model(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(give) for _ in range(5))

    def forward(self, x):
        given = []
        for block in self.blocks:
            x, part = block(x)
            given.append(part)
        return x, given


def flat(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, Output):
        return [tree.sample]
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in flat(value)]
    return (
        [leaf for value in tree for leaf in flat(value)] if isinstance(tree, (list, tuple)) else []
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("give", GIVEN)
@pytest.mark.parametrize("num_slots", [1, 2, 3, None])
def test_what_a_block_gives_out_stays_what_it_was(num_slots, give, mode):
    plain, placed = Model(GIVEN[give]), Model(GIVEN[give])
    kind = ModelOffload("") if num_slots is None else LayerwiseOffload("", num_slots=num_slots)
    kind.attach(placed, "cpu")
    kind.on_predict_batch_start()
    with MODES[mode]():
        for _ in range(2):
            theirs, ours = plain(torch.ones(2, 4)), placed(torch.ones(2, 4))
            for mine, its in zip(flat(ours), flat(theirs), strict=True):
                assert torch.equal(mine, its)
                assert mine.stride() == its.stride()
                assert mine.requires_grad == its.requires_grad
    kind.on_predict_batch_end()


def keep_attribute(block):
    block.kept = block.position.detach()[:2]


def keep_in_list(block):
    block.seen.append(block.position.data[1])


def keep_parameter(block):
    block.again = block.position


KEEPING = {"kept": keep_attribute, "seen": keep_in_list, "again": keep_parameter}


@pytest.mark.parametrize("where", KEEPING)
@pytest.mark.parametrize("mode", ["no_grad", "inference"])
def test_a_view_that_a_block_keeps_is_refused_by_name(where, mode):
    model = Model(KEEPING[where])
    for block in model.blocks:
        block.seen = []
    LayerwiseOffload("").attach(model, "cpu")
    with MODES[mode](), pytest.raises(RuntimeError, match=rf"blocks\.0: .* in {where}.*clone"):
        model(torch.ones(2, 4))


def test_a_view_in_what_a_block_was_called_with_is_refused():
    class Writer(Block):
        def forward(self, x, cache):
            cache["key"] = self.position[0]
            return self.linear(x)

    model = nn.Sequential(Writer(None), Writer(None))
    LayerwiseOffload("").attach(model, "cpu")
    with torch.no_grad(), pytest.raises(RuntimeError, match="what it was called with"):
        model[0](torch.ones(2, 4), {})


def test_a_copy_has_the_phase_and_the_strides_of_the_view():
    memory = torch.arange(4096, dtype=torch.uint8)
    view = memory[1100:2100].view(torch.int32).as_strided((7, 5), (1, 9), 278)
    copied = apart_from(memory, view)
    assert torch.equal(copied, view)
    assert copied.stride() == view.stride()
    assert not lies_in(copied, memory)
    assert (copied.data_ptr() - view.data_ptr()) % 64 == 0
    other = torch.ones(3)
    assert apart_from(memory, other) is other
    kept = (other, [None, "a"])
    assert apart_from(memory, kept) is kept
