"""Tensors that reach into each other's memory without being the same tensor."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from fastvideo_lightning.offload.tensors.bindings import find_bindings, split_sharing

PLACEMENTS = {
    "blocks": lambda: LayerwiseOffload("m"),
    "one slot and residents": lambda: LayerwiseOffload("m", num_slots=1, resident_blocks=2),
    "whole": lambda: ModelOffload("m"),
    "resident": lambda: Resident("m"),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("base", torch.zeros(2, 4))
        self.register_buffer("part", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.part += 1
        return self.b(self.a(x)) + self.base.sum() + self.part.sum()


def row_of_a_buffer(blocks: nn.ModuleList) -> None:
    for block in blocks:
        block.part = block.base[1]


def row_of_another_blocks_buffer(blocks: nn.ModuleList) -> None:
    blocks[2].part = blocks[0].base[1]


def same_bytes(blocks: nn.ModuleList) -> None:
    for block in blocks:
        block.b.weight.data = block.a.weight.data


def same_bytes_in_two_blocks(blocks: nn.ModuleList) -> None:
    blocks[3].a.weight.data = blocks[1].b.weight.data


def transposed(blocks: nn.ModuleList) -> None:
    for block in blocks:
        block.b.weight = nn.Parameter(block.a.weight.data.t())


def interleaved(blocks: nn.ModuleList) -> None:
    both = torch.randn(4, 8)
    for block in blocks[1:3]:
        block.a.weight = nn.Parameter(both[:, :4])
        block.b.weight = nn.Parameter(both[:, 4:])


SHARED: list[Callable[[nn.ModuleList], None]] = [
    row_of_a_buffer,
    row_of_another_blocks_buffer,
    same_bytes,
    same_bytes_in_two_blocks,
    transposed,
    interleaved,
]


def make_root(share: Callable[[nn.ModuleList], None]) -> nn.Module:
    torch.manual_seed(0)
    root = nn.Module()
    root.m = nn.Module()
    root.m.blocks = nn.ModuleList(Block() for _ in range(4))
    share(root.m.blocks)
    root.m.forward = lambda x: nn.Sequential(*root.m.blocks)(x)
    return root


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize("share", SHARED)
def test_a_write_to_one_is_a_write_to_the_other_in_a_forward_between_calls_and_after_detach(
    share, kind
):
    plain, root = make_root(share), make_root(share)
    callback = PLACEMENTS[kind]()
    callback.attach(root, "cpu")
    x = torch.ones(2, 4)

    def edit() -> None:
        with torch.no_grad():
            for each in (plain, root):
                each.m.blocks[1].b.weight.mul_(0.5)
                each.m.blocks[2].a.weight.add_(1)
                each.m.blocks[0].base.add_(1)

    for _ in range(3):
        assert torch.equal(plain.m(x), root.m(x))
        edit()
    callback.detach()
    edit()
    assert torch.equal(plain.m(x), root.m(x))


def test_pieces_of_one_buffer_that_do_not_overlap_stream_as_any_weights():
    flat = torch.randn(4 * 32)
    root = nn.Module()
    root.m = nn.Module()
    root.m.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
    for block, piece in zip(root.m.blocks, flat.split(32), strict=True):
        block.weight = nn.Parameter(piece[:16].view(4, 4))
        block.bias = nn.Parameter(piece[16:20])
    callback = LayerwiseOffload("m")
    callback.attach(root, "cpu")
    assert [len(unit.bindings) for unit in callback.attachments[0].units] == [2] * 4


def test_a_tensor_inside_of_a_larger_one_is_found_whatever_lies_between():
    base, other = torch.zeros(100), torch.zeros(3)
    module = nn.Module()
    for name, tensor in {
        "base": base,
        "first": base[:1],
        "last": base[99:],
        "other": other,
        "none": base[:0],
    }.items():
        module.register_buffer(name, tensor)
    bindings = {b.fqn: b for b in find_bindings(module)}
    (moving,), sharing = split_sharing([list(bindings.values())], [])
    assert {b.fqn for b in sharing} == {"base", "first", "last"}
    assert {b.fqn for b in moving} == {"other", "none"}


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_a_tensor_with_gaps_keeps_them_so_that_gradients_have_the_same_bits(kind):
    def make() -> nn.Module:
        root = make_root(lambda blocks: None)
        torch.manual_seed(1)
        for block in root.m.blocks:
            block.a.weight = nn.Parameter(torch.randn(4, 8)[:, ::2])
            block.b.weight = nn.Parameter(torch.randn(4, 4).t())
        return root

    plain, root = make(), make()
    callback = PLACEMENTS[kind]()
    callback.attach(root, "cpu")
    for each in (plain, root):
        each.m(torch.ones(3, 4) / 7).sum().backward()
    for (fqn, one), other in zip(root.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), fqn
    callback.detach()
    strides = [[p.stride() for p in each.parameters()] for each in (plain, root)]
    assert strides[0] == strides[1]
