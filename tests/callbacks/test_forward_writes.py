"""What a forward may do to its module's tensors, placed in any way: as the plain module does."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident
from fastvideo_lightning.offload.tensors import bindings

PLACEMENTS = {
    "one slot": lambda: LayerwiseOffload("model", num_slots=1),
    "two slots": lambda: LayerwiseOffload("model"),
    "three slots": lambda: LayerwiseOffload("model", num_slots=3),
    "residents": lambda: LayerwiseOffload("model", resident_blocks=2),
    "skippable": lambda: LayerwiseOffload("model", skippable=True),
    "whole": lambda: ModelOffload("model"),
    "resident": lambda: Resident("model"),
    "cpu": lambda: CPUExecution("model"),
}
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
    "as it is": nullcontext,
}


def assign_weight(block: nn.Module) -> None:
    block.linear.weight = nn.Parameter(block.linear.weight * 1.5)


def swap_memory(block: nn.Module) -> None:
    block.linear.weight.data = block.linear.weight.data * 1.5


def grow(block: nn.Module) -> None:
    block.cache = torch.cat([block.cache, torch.ones(1)])


def register(block: nn.Module) -> None:
    if "late" not in block._buffers:
        block.register_buffer("late", torch.zeros(()), persistent=False)
    block.late += 1
    block.count.copy_(block.late)


def forget(block: nn.Module) -> None:
    block.count = torch.ones(()) if block.count is None else None


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "buffer in place": lambda block: block.count.add_(1),
    "buffer by .data": lambda block: block.count.data.add_(1),
    "buffer's .data": lambda block: setattr(block.count, "data", block.count.data + 1),
    "buffer assigned": lambda block: setattr(block, "count", block.count + 1),
    "buffer of a part": lambda block: block.part[0].running_mean.data.add_(1),
    "buffer that grows": grow,
    "buffer made in the forward": register,
    "buffer that comes and goes": forget,
    "buffer through NumPy": lambda block: block.count.numpy().__iadd__(1),
    "half a buffer by .data": lambda block: block.cache.data[:1].fill_(block.cache[0].item() + 1),
    "weight in place": lambda block: block.linear.weight.mul_(1.5),
    "weight by .data": lambda block: block.linear.weight.data.mul_(1.5),
    "weight's .data": swap_memory,
    "weight assigned": assign_weight,
    "weight detached": lambda block: block.linear.weight.detach().mul_(1.5),
    "weight rolled by .data": lambda block: block.linear.weight.data.copy_(
        block.linear.weight.data.roll(1, 0)
    ),
    "bias by .data, now and then": lambda block: (
        block.linear.bias.data.add_(1) if block.calls % 3 == 2 else None
    ),
}


class Block(nn.Module):
    def __init__(self, write: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.part = nn.Sequential(nn.BatchNorm1d(8))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", torch.ones(2))
        self.register_buffer("narrow", torch.ones(3, dtype=torch.bfloat16))
        self.write = write
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.narrow.data.mul_(2)
        with torch.no_grad():
            self.write(self)
        count = 0 if self.count is None else self.count
        return self.part(self.linear(x)) + count + self.cache.sum() + self.narrow.sum()


class Model(nn.Module):
    def __init__(self, write: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(write) for _ in range(5))

    def forward(self, x: torch.Tensor, order: list[int]) -> torch.Tensor:
        for i in order:
            x = self.blocks[i](x)
        return x


class Root(nn.Module):
    def __init__(self, write: Callable[[nn.Module], object] = lambda block: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Model(write)


ORDERS = ([0, 1, 2, 3, 4], [0, 0, 1, 4, 4, 2], [3, 2, 1, 0], [0, 1, 2, 3, 4])


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)


def all_of(names: dict[str, object], *first: str) -> list[object]:
    rest = [name for name in names if name not in first]
    return [*first, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in rest)]


@pytest.mark.parametrize("in_batch", [False, True], ids=["calls", "batches"])
@pytest.mark.parametrize("mode", all_of(MODES, "inference_mode", "grad"))
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("placement", all_of(PLACEMENTS, "two slots", "whole"))
def test_what_a_forward_writes_is_kept(placement, write, mode, in_batch):
    plain, placed = Root(WRITES[write]), Root(WRITES[write])
    callback = PLACEMENTS[placement]()
    callback.attach(placed, "cpu")
    x = torch.linspace(-1, 1, 24).reshape(3, 8)
    for number, order in enumerate(ORDERS):
        if in_batch and number % 2 == 0:
            callback.on_predict_batch_start()
        with MODES[mode]():
            expected, got = plain.model(x, order), placed.model(x, order)
        assert torch.equal(expected, got), number
        if in_batch and number % 2:
            callback.on_predict_batch_end()
    assert same_state(placed, plain)
    callback.detach()
    assert same_state(placed, plain)
    with MODES[mode]():
        assert torch.equal(placed.model(x, ORDERS[0]), plain.model(x, ORDERS[0]))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("placement", ["two slots", "whole"])
def test_a_buffer_too_large_to_stay_is_kept_or_refused_by_name(placement, write, monkeypatch):
    monkeypatch.setattr(bindings, "STAYING_BYTES", 0)
    if write in ("buffer that grows", "buffer that comes and goes"):
        with pytest.raises(RuntimeError, match=r"model.*: the forward replaced .*Use Resident"):
            test_what_a_forward_writes_is_kept(placement, write, "inference_mode", in_batch=False)
    else:
        test_what_a_forward_writes_is_kept(placement, write, "inference_mode", in_batch=False)
