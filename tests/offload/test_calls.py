"""Calls from several threads, and calls that end in ways that torch's hooks do not see."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from fastvideo_lightning.offload.unit import UnitState
from tests.support.toys import Toy, make_toy, sample

PLACEMENTS = {
    "blocks": LayerwiseOffload,
    "one slot": lambda target: LayerwiseOffload(target, num_slots=1),
    "skippable": lambda target: LayerwiseOffload(target, skippable=True),
    "whole": ModelOffload,
}


@pytest.fixture(autouse=True)
def _threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def make_root(*placements: str) -> nn.ModuleDict:
    names = ("one", "other")
    root = nn.ModuleDict({name: make_toy(4, seed=i) for i, name in enumerate(names)})
    for name, placement in zip(names, placements, strict=False):
        PLACEMENTS[placement](name).attach(root, "cpu")
    return root


def engine_on(root: nn.Module):
    (engine,) = vars(root)["_offload_engines"].values()
    return engine


def at_once(*works: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result(timeout=120)


@pytest.mark.parametrize("second", PLACEMENTS)
@pytest.mark.parametrize("first", PLACEMENTS)
def test_two_threads_that_call_two_models_get_what_each_alone_gets(first, second):
    if "one slot" in (first, second) and first != second and "whole" not in (first, second):
        pytest.skip("callbacks on one module share their number of slots")
    plain, root = make_root(), make_root(first, second)

    def calls(name: str) -> Callable[[], None]:
        expected = plain[name](sample())

        def work() -> None:
            for _ in range(25):
                assert torch.equal(root[name](sample()), expected)
                assert torch.equal(root[name].blocks[1](sample()), plain[name].blocks[1](sample()))

        return work

    at_once(calls("one"), calls("other"), calls("one"))
    engine_on(root).check()


def test_a_batch_may_begin_and_end_while_another_thread_calls():
    plain, root = make_root(), make_root("blocks")
    other = LayerwiseOffload("other")
    other.attach(root, "cpu")
    expected = plain["one"](sample())

    def call() -> None:
        for _ in range(40):
            assert torch.equal(root["one"](sample()), expected)

    def batches() -> None:
        for _ in range(20):
            other.on_predict_batch_start()
            assert torch.equal(root["other"](sample()), plain["other"](sample()))
            other.on_predict_batch_end()

    at_once(call, batches)


def test_a_callback_may_come_and_go_while_another_thread_calls():
    plain, root = make_root(), make_root("blocks")
    expected = plain["one"](sample())

    def call() -> None:
        for _ in range(60):
            assert torch.equal(root["one"](sample()), expected)

    def attach_and_detach() -> None:
        for _ in range(10):
            other = LayerwiseOffload("other")
            other.attach(root, "cpu")
            assert torch.equal(root["other"](sample()), plain["other"](sample()))
            other.detach()

    at_once(call, attach_and_detach)


class OnThreads(Toy):
    """A model that has its blocks called by a thread of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            for block in self.blocks:
                x = pool.submit(block, x).result()
        return x


def test_a_block_called_on_a_thread_within_its_models_call_is_refused_by_name_not_waited_for():
    model = OnThreads()
    callback = LayerwiseOffload("blocks")
    callback.attach(model, "cpu")
    with pytest.raises(RuntimeError, match=r"blocks\.0 is called on a thread while its model"):
        model(sample())
    engine_on(model).check()
    assert torch.equal(model.blocks[0](sample()), model.blocks[0](sample()))


class EndOfThread(BaseException):
    """What ends a thread, as KeyboardInterrupt does the first one."""


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_a_thread_that_ended_in_the_middle_of_a_call_holds_nobody_up(kind):
    plain, root = make_root(), make_root(kind)
    engine = engine_on(root)

    def end(*_: object) -> None:
        engine.end_call = lambda called: None  # it does not even come to that
        raise EndOfThread

    hook = root["one"].blocks[1].up.register_forward_pre_hook(end)

    def call() -> None:
        with pytest.raises(EndOfThread):
            root["one"](sample())

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    hook.remove()
    del engine.end_call
    for _ in range(2):
        assert torch.equal(root["one"](sample()), plain["one"](sample()))
    engine.check()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize("name", ["one", "one.blocks.2", "one.blocks.1.up"])
def test_an_interrupted_call_leaves_the_module_as_a_call_that_returned(kind, name, mode):
    root = make_root(kind).requires_grad_(True)
    before = dict(root.named_parameters())
    engine = engine_on(root)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    module = root.get_submodule(name)
    inside = list(module.modules())[-1]
    hook = inside.register_forward_hook(interrupt)
    if kind == "whole" and name != "one":
        pytest.skip("called through the component")
    with mode(), pytest.raises(KeyboardInterrupt):
        module(sample())
    hook.remove()
    after = dict(root.named_parameters())
    assert all(after[fqn] is parameter for fqn, parameter in before.items())
    assert all(unit.state is not UnitState.RESIDENT for unit in engine.units)
    with torch.no_grad():
        for parameter in root.parameters():
            parameter.fill_(0.25)
    plain = make_root()
    plain.load_state_dict(root.state_dict())
    for _ in range(2):
        assert torch.equal(root["one"](sample()), plain["one"](sample()))
    engine.check()


def test_an_interrupt_that_a_forward_catches_ends_the_block_and_not_the_model():
    class Catching(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                try:
                    x = block(x)
                except KeyboardInterrupt:
                    x = x + 1
            return x

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    torch.manual_seed(0)
    plain = Catching()
    model = Catching()
    model.load_state_dict(plain.state_dict())
    for block, other in zip(model.blocks, plain.blocks, strict=True):
        block.table = other.table.clone()
    LayerwiseOffload("blocks").attach(model, "cpu")
    for each in (plain, model):
        each.blocks[1].down.register_forward_pre_hook(interrupt)
    for _ in range(3):
        assert torch.equal(model(sample()), plain(sample()))
        engine_on(model).check()


def test_blocks_that_call_each_other_outside_of_their_model_stay_where_they_are():
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Linear(16, 16)
            self.next: list[nn.Module] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.next:
                x = block(x)
            return self.own(x)

    def make() -> nn.Module:
        torch.manual_seed(3)
        root = nn.Module()
        root.blocks = nn.ModuleList(Calling() for _ in range(4))
        root.blocks[0].next = [root.blocks[1]]
        return root

    plain, root = make(), make()
    LayerwiseOffload("blocks").attach(root, "cpu")
    for _ in range(3):
        assert torch.equal(root.blocks[0](sample()), plain.blocks[0](sample()))
        engine_on(root).check()
