"""What holds where two ranks share the calls of a step; each is called with its device."""

import logging
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from support.recipes import PICTURES, RECIPES
from support.recipes.runs import Media, place, placed, run_ours, run_plain

from fastvideo_lightning import VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from tests.support.toys import Toy, make_toy, sample

NUM_BLOCKS = 4


class Branch:
    """A toy within a batch whose calls two ranks share, beside its plain twin."""

    def __init__(self, device: torch.device, how: str, change: Any = lambda toy: None) -> None:
        self.device, self.how = device, how
        self.plain, self.toy = make_toy(NUM_BLOCKS), make_toy(NUM_BLOCKS)
        for toy in (self.plain, self.toy):
            change(toy)
        self.plain.to(device)
        self.num_computed = 0
        if how == "resident":
            self.callback: Any = Resident("", guidance_parallel=2)
        else:
            self.callback = LayerwiseOffload("blocks", shard_transport=how, guidance_parallel=2)
        self.callback.attach(self.toy, device)
        self.toy.blocks[1].register_forward_pre_hook(self._count)
        self.callback.on_predict_batch_start()

    def _count(self, *_: object) -> None:
        self.num_computed += 1

    def step(self, number: int = 0, num_calls: int = 2) -> int:
        """Make the calls of a step; return how many of them this rank has computed."""
        before = self.num_computed
        with torch.no_grad():
            inputs = [sample().to(self.device) + 10 * number + i for i in range(num_calls)]
            expected = [self.plain(x.clone()) for x in inputs]
            outputs = [self.toy(x) for x in inputs]
            assert torch.equal(torch.stack([1 * x for x in outputs]), torch.stack(expected))
        return self.num_computed - before

    def end(self) -> None:
        self.callback.on_predict_batch_end()
        self.callback.detach()


def each_computes_one_of_two_calls(device: torch.device, how: str) -> None:
    branch = Branch(device, how)
    for _ in range(2):
        assert [branch.step(number) for number in range(4)] == [2, 1, 1, 1]
        if how != "resident":
            engine = branch.callback.attachments[0].engine
            before = engine.stats.copies
            branch.step()
            assert engine.stats.copies - before <= NUM_BLOCKS
            assert branch.callback.lockstep == (how == "gather")
        branch.callback.on_predict_batch_end()
        branch.callback.on_predict_batch_start()
    branch.end()


def any_number_of_calls_is_right(device: torch.device, num_calls: int) -> int:
    branch = Branch(device, "gather")
    for number in range(5):
        computed = branch.step(number, num_calls)
    branch.end()
    return computed


def one_call_a_step_is_told_once(device: torch.device) -> list[str]:
    branch = Branch(device, "local")
    messages: list[str] = []
    log = logging.getLogger("fastvideo_lightning.offload.call_groups")
    with mock.patch.object(log, "info", lambda text, *args: messages.append(text % args)):
        for _ in range(2):
            for number in range(4):
                assert branch.step(number, 1) == 1
            branch.callback.on_predict_batch_end()
            branch.callback.on_predict_batch_start()
        branch.end()
    return messages


def an_exception_in_one_is_one_in_both(device: torch.device, how: str) -> None:
    branch = Branch(device, how)
    branch.step()
    failing = dist.get_rank() == 1
    branch.toy.blocks[2].fails = failing
    reason = "the block failed" if failing else "Rank 1 failed: RuntimeError: the block failed"
    try:
        with torch.no_grad():
            first = branch.toy(sample().to(device))
            branch.toy(sample().to(device))
    except RuntimeError as error:
        told = str(error)
        branch.callback.on_exception()
    assert told == reason
    with pytest.raises(RuntimeError, match=reason):
        first.sum()
    branch.toy.blocks[2].fails = False
    branch.callback.on_predict_batch_start()
    assert [branch.step(number) for number in range(3)] == [2, 1, 1]
    branch.end()


def a_use_on_one_rank_only_is_an_error_of_both(device: torch.device) -> None:
    branch = Branch(device, "local")
    branch.step()
    try:
        with torch.no_grad():
            first = branch.toy(sample().to(device))
            if dist.get_rank() == 0:
                first.sum()
            1 * branch.toy(sample().to(device))
        branch.callback.on_predict_batch_end()
    except RuntimeError as error:
        told = str(error)
        branch.callback.on_exception()
    assert "out of step" in told
    assert "rank 0: 0, rank 1: 1" in told
    branch.callback.on_predict_batch_start()
    assert [branch.step(number) for number in range(3)] == [2, 1, 1]
    branch.end()


def _remember(toy: Toy) -> None:
    for block in toy.blocks:
        block.register_buffer("seen", torch.zeros(2, 16))

        def forward(x: torch.Tensor, block: Any = block, own: Any = block.forward) -> torch.Tensor:
            y = own(x + block.seen)
            block.seen.copy_(y)
            return y

        block.forward = forward


def _replace(toy: Toy) -> None:
    toy.last = None

    def forward(x: torch.Tensor, own: Any = toy.forward) -> torch.Tensor:
        y = own(x if toy.last is None else x + toy.last)
        toy.last = y.clone()
        return y

    toy.forward = forward


def _draw(toy: Toy) -> None:
    generator = torch.Generator().manual_seed(3)

    def forward(x: torch.Tensor, own: Any = toy.forward) -> torch.Tensor:
        torch.manual_seed(int(torch.randint(9, (1,), generator=generator)))
        return own(x + torch.randn(2, 16).to(x.device))

    toy.forward = forward


def _write(toy: Toy) -> None:
    def forward(x: torch.Tensor, own: Any = toy.forward) -> torch.Tensor:
        y = own(x)
        x += 1
        return y

    toy.forward = forward


LEAVES = {"buffers": _remember, "attributes": _replace, "draws": _draw, "inputs": _write}


def calls_that_leave_something_behind_are_made_by_both(device: torch.device, what: str) -> None:
    branch = Branch(device, "local", LEAVES[what])
    assert [branch.step(number) for number in range(4)] == [2, 2, 2, 2]
    branch.end()


def a_result_may_have_any_strides(device: torch.device, view: str) -> None:
    views: dict[str, Any] = {
        "steps": lambda x: x[:, ::2],
        "transposed": lambda x: x.T,
        "expanded": lambda x: x[:1].expand(3, 16),
        "empty": lambda x: x[:0],
        "bf16": lambda x: x.bfloat16(),
        "bool": lambda x: x > 0,
    }

    def cut(toy: Toy) -> None:
        toy.forward = lambda x, own=toy.forward: views[view](own(x))

    branch = Branch(device, "gather", cut)
    assert [branch.step(number) for number in range(3)] == [2, 1, 1]
    branch.end()


def a_pipeline_makes_the_same(
    device: torch.device, name: str, media: Media, how: str = "gather"
) -> int:
    """Return how many groups of calls were shared."""
    recipe = (RECIPES | PICTURES)[name]
    plain = run_plain(recipe.build(), recipe, media)
    module = VideoModule.from_pipeline(recipe.build())
    placements = place(module, num_slots=1, shard_transport=how, guidance_parallel=2)
    num_shared = 0

    def count(*_: object, own: Any = dist.broadcast, **__: Any) -> Any:
        nonlocal num_shared
        num_shared += 1
        return own(*_, **__)

    streamed = [each for each in placements if isinstance(each, LayerwiseOffload)]
    with placed(module, placements, device), mock.patch.object(dist, "broadcast", count):
        for each in streamed:
            each.on_predict_batch_start()
        found = run_ours(module, recipe, media)
        for each in streamed:
            each.on_predict_batch_end()
    assert len(found.steps) <= len(plain.steps)  # a rank sees the calls that it makes
    assert replace(found, steps=plain.steps).equals(plain)
    return num_shared
