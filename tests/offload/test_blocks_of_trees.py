"""Lists of lists, shared blocks and the stages of a U-Net."""

import torch
from torch import nn

from fastvideo_lightning.offload.blocks import find_block_lists, split_list
from tests.support.toys import Block


def names(model: nn.Module) -> list[str]:
    return [name for found in find_block_lists(model) for name, _ in found.blocks]


def test_a_list_of_lists_gives_the_inner_members_for_nothing_calls_a_list():
    inner = [nn.ModuleList([Block(8, 8), Block(8, 8)]) for _ in range(2)]
    model = nn.ModuleDict({"blocks": nn.ModuleList(inner)})
    assert names(model) == ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1"]


def test_a_block_that_two_lists_share_is_found_once():
    shared = Block(8, 8)
    first, second = nn.ModuleList([shared, Block(8, 8)]), nn.ModuleList([shared, Block(8, 8)])
    model = nn.ModuleDict({"first": first, "second": second})
    assert names(model) == ["first.0", "first.1", "second.1"]


class Stage(nn.Module):
    """Two blocks in a list, and a little beside them."""

    def __init__(self, width: int, *, beside: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, width), Block(width, width)])
        self.norm = nn.Linear(width, beside)


def test_stages_of_unlike_sizes_are_cut_into_their_blocks():
    model = nn.ModuleDict({"down": nn.ModuleList([Stage(8), Stage(64)])})
    assert names(model)[0] == "down.0.blocks.0"
    assert names(model)[-1] == "down.1.blocks.1"
    assert [found.fqn for found in split_list(model["down"], "down")] == [
        "down.0.blocks",
        "down.1.blocks",
    ]


def test_members_of_like_sizes_are_blocks_whatever_is_in_them():
    assert names(nn.ModuleDict({"layers": nn.ModuleList([Stage(8), Stage(8)])})) == [
        "layers.0",
        "layers.1",
    ]


def test_a_stage_with_much_beside_its_blocks_stays_whole():
    model = nn.ModuleDict({"down": nn.ModuleList([Stage(8), Stage(64, beside=256)])})
    assert names(model) == ["down.1", "down.0.blocks.0", "down.0.blocks.1"]


def test_the_largest_block_of_a_unet_is_a_small_part_of_it():
    from diffusers import UNetMotionModel, UNetSpatioTemporalConditionModel

    for kind in (UNetMotionModel, UNetSpatioTemporalConditionModel):
        with torch.device("meta"):
            model = kind()
        sizes = [
            sum(weight.numel() for weight in block.parameters())
            for found in find_block_lists(model)
            for _, block in found.blocks
        ]
        total = sum(weight.numel() for weight in model.parameters())
        assert sum(sizes) >= 0.95 * total
        assert max(sizes) <= 0.07 * total
