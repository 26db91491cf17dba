"""Gradients through streamed blocks: those of the plain model, one block's weights at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from tests.callbacks.conftest import engine_in
from tests.callbacks.test_adapters import adapt
from tests.support.toys import OnFile, Toy, make_toy, sample

CHECKPOINTS = {
    "all_kept": None,
    "each_block_again": {"use_reentrant": False},
    "each_block_again_reentrant": {"use_reentrant": True},
}
PLACEMENTS = {
    "mapped": lambda: LayerwiseOffload("blocks", host_memory="mapped"),
    "pinned": lambda: LayerwiseOffload("blocks", host_memory="pinned"),
    "skippable": lambda: LayerwiseOffload("blocks", skippable=True),
    "partly_resident": lambda: LayerwiseOffload("blocks", resident_blocks=2),
    "one_slot": lambda: LayerwiseOffload("blocks", num_slots=1),
    "model": lambda: ModelOffload(""),
    "resident": lambda: Resident(""),
}


class Trained(Toy):
    """A toy that can compute each of its blocks again in the backward."""

    again: dict[str, bool] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for i in self.order:
            x = self.blocks[i](x) if self.again is None else self.call_again(i, x)
        return self.head(x)

    def call_again(self, i: int, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.blocks[i], x, **self.again)


class TrainedOnFile(OnFile, Trained):
    pass


def make_pair(folder, again=None) -> tuple[Trained, Trained]:
    like = make_toy(6)
    plain, streamed = Trained(16, 6), TrainedOnFile(like, folder / "toy.safetensors")
    plain.load_state_dict(like.state_dict())
    for block, other in zip(plain.blocks, like.blocks, strict=True):
        block.table = other.table.clone()
    for model in (plain, streamed):
        model.eval().requires_grad_(False)
        model.again = again
    return plain, streamed


def add_adapters(*models: nn.Module) -> None:
    adapt(*models, blocks=(0, 1, 3))
    for model in models:
        for name, weight in model.named_parameters():
            weight.requires_grad_("beside" in name)


def take_steps(
    model: nn.Module,
    count: int = 3,
    *,
    x: torch.Tensor | None = None,
    make_optimizer: Callable[..., Any] = torch.optim.Adam,
) -> list[torch.Tensor]:
    """Train what requires it; return every loss, gradient and trained weight on the way."""
    x = sample() if x is None else x
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = make_optimizer(weights, lr=0.1)
    seen = []
    for step in range(count):
        loss = model(x.add(step).requires_grad_()).square().mean()
        loss.backward()
        seen += [loss.detach(), *(weight.grad.clone() for weight in weights)]
        optimizer.step()
        optimizer.zero_grad()
        seen += [weight.detach().clone() for weight in weights]
    return seen


@pytest.mark.parametrize("again", CHECKPOINTS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_training_is_that_of_the_plain_model_bit_for_bit(placement, again, tmp_path):
    plain, streamed = make_pair(tmp_path, CHECKPOINTS[again])
    callback = PLACEMENTS[placement]()
    callback.attach(streamed, "cpu")
    add_adapters(plain, streamed)
    for mine, theirs in zip(take_steps(streamed), take_steps(plain), strict=True):
        assert torch.equal(mine, theirs)
    if callback.attachments[0].engine is not None:
        engine_in(callback).check()
    with torch.no_grad():
        assert torch.equal(streamed(sample()), plain(sample()))
    callback.detach()
    for (name, mine), theirs in zip(streamed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_whole_blocks_are_trained_on_the_host(tmp_path):
    plain, streamed = make_pair(tmp_path, CHECKPOINTS["each_block_again"])
    LayerwiseOffload("blocks", host_memory="mapped").attach(streamed, "cpu")
    for model in (plain, streamed):
        model.blocks.requires_grad_(True)
    for mine, theirs in zip(take_steps(streamed), take_steps(plain), strict=True):
        assert torch.equal(mine, theirs)


class Counting(nn.Module):
    """A block that writes a buffer in its forward, as a batch norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.weight
        self.count += 1
        return y + self.count


@pytest.mark.parametrize("skippable", [False, True])
def test_what_a_recorded_block_writes_is_kept_and_hinders_no_gradient(skippable):
    seen = []
    for streams in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(Counting() for _ in range(4)))
        if streams:
            LayerwiseOffload("", skippable=skippable).attach(model, "cpu")
        seen.append(take_steps(model))
        assert [block.state_dict()["count"] for block in model] == [3] * 4
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


def test_gradients_of_the_input_need_no_trained_weight(tmp_path):
    gradients = []
    for model in make_pair(tmp_path):
        if isinstance(model, OnFile):
            LayerwiseOffload("blocks").attach(model, "cpu")
        x = sample().requires_grad_()
        model(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("again", "at_most"), [("all_kept", 6), ("each_block_again", 1)])
def test_with_checkpointing_one_blocks_weights_are_there_at_a_time(again, at_most, tmp_path):
    _, streamed = make_pair(tmp_path, CHECKPOINTS[again])
    callback = LayerwiseOffload("blocks")
    callback.attach(streamed, "cpu")
    shown: dict[int, StorageWeakRef] = {}
    alive = []

    def look(module: nn.Module, *_: object) -> None:
        storage = module.weight.untyped_storage()
        shown[storage._cdata] = StorageWeakRef(storage)
        alive.append(sum(not reference.expired() for reference in shown.values()))

    for block in streamed.blocks:
        block.up.register_forward_hook(look)
    for _ in range(2):
        streamed(sample().requires_grad_()).sum().backward()
    assert max(alive) == at_most
    assert all(reference.expired() for reference in shown.values())


def test_a_backward_brings_the_blocks_ahead_in_the_opposite_order(tmp_path):
    _, streamed = make_pair(tmp_path, CHECKPOINTS["each_block_again"])
    callback = LayerwiseOffload("blocks")
    callback.attach(streamed, "cpu")
    stats = engine_in(callback).stats
    for _ in range(3):
        copies, misses = stats.copies, stats.misses
        streamed(sample().requires_grad_()).sum().backward()
        assert stats.copies - copies == 6 + 4, "the last two blocks are still in their slots"
        assert stats.misses - misses == 1, "the backward begins with a block nobody prefetched"


def test_without_gradients_nothing_is_kept(toy, callback):
    addresses = []
    toy.blocks[0].register_forward_pre_hook(
        lambda block, _: addresses.append(block.up.weight.data_ptr())
    )
    slots = [slot.buffer for slot in engine_in(callback).ring.slots]
    with torch.no_grad():
        toy.requires_grad_(True)(sample())
    toy.requires_grad_(False)(sample())
    assert all(any(b.data_ptr() <= a < b.data_ptr() + b.numel() for b in slots) for a in addresses)
    assert len(addresses) == 2
