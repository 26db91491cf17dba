"""Files that are mapped again: put in place of others, attached to once more, dropped unasked."""

import copy
import gc
import os
import signal
import warnings
import weakref

import pytest
import torch

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload
from fastvideo_lightning.offload.host import mapped
from fastvideo_lightning.offload.host.store import HostStore
from fastvideo_lightning.offload.registry import engines_of
from tests.support.toys import OnFile, make_toy, sample

pytestmark = pytest.mark.skipif(not mapped.IS_SUPPORTED, reason="mapping needs Linux")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


class Driver:
    """Stands in for a driver: takes all memory, or refuses it, and keeps count."""

    registered: set[int]
    refuses = False

    def cudaHostRegister(self, address, size, flags):  # noqa: N802
        if not self.refuses:
            self.registered.add(address)
        return 801 if self.refuses else 0

    def cudaHostUnregister(self, address):  # noqa: N802
        self.registered.remove(address)
        return 0


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    driver.registered = set()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    init = HostStore.__init__

    def with_driver(self, device):
        init(self, device)
        self._has_driver = True

    monkeypatch.setattr(HostStore, "__init__", with_driver)
    yield driver
    gc.collect()  # what a failed test left goes by this driver


def attach(model, host_memory="mapped"):
    callback = LayerwiseOffload("blocks", host_memory=host_memory)
    callback.attach(model, "cpu")
    return callback, callback.attachments[0].engine


def test_a_file_in_place_of_another_is_another_file(path):
    plain, other = make_toy(4), make_toy(4, seed=1)
    model = OnFile(plain, path)
    attach(model)
    assert torch.equal(model(sample()), plain(sample()))
    path.unlink()
    second = OnFile(other, path)
    attach(second)
    assert torch.equal(second(sample()), other(sample()))
    assert torch.equal(model(sample()), plain(sample()))


@pytest.mark.parametrize("host_memory", ["mapped", "auto"])
@pytest.mark.parametrize("edits", [False, True])
def test_a_model_is_mapped_again_where_it_was(path, driver, host_memory, edits):
    plain = make_toy(4, width=64)
    model = OnFile(plain, path)
    callback, engine = attach(model, host_memory)
    before = engine.store.mapped_bytes
    segments = [len(unit.slab.segments) for unit in engine.units]
    assert before > 0
    for _ in range(2):
        assert torch.equal(model(sample(64)), plain(sample(64)))
        callback.detach()
        assert not driver.registered
        if edits:
            for toy in (model, plain):
                toy.blocks[1].up.weight.data.mul_(1.5)
        callback, engine = attach(model, host_memory)
        assert torch.equal(model(sample(64)), plain(sample(64)))
        engine.check()
    if not edits:
        assert engine.store.mapped_bytes == before
        assert [len(unit.slab.segments) for unit in engine.units] == segments
    else:
        assert 0 < engine.store.mapped_bytes < before


def test_a_file_that_is_gone_is_not_looked_for(path):
    plain = make_toy(2)
    model = OnFile(plain, path)
    callback, _ = attach(model)
    callback.detach()
    path.unlink()
    _, engine = attach(model, "auto")
    assert torch.equal(model(sample()), plain(sample()))
    assert engine.store.mapped_bytes == 0
    with pytest.raises(ValueError, match="these lie in memory.*pack MODEL OUT"):
        attach(make_toy(2))


@pytest.mark.parametrize("kind", [LayerwiseOffload, ModelOffload, CPUExecution])
def test_a_model_that_is_dropped_goes_with_all_that_was_registered(path, driver, kind):
    model = OnFile(make_toy(4), path)
    kind("").attach(model, "cpu")
    model(sample())
    engines = [weakref.ref(engine) for engine in engines_of(model)]
    assert bool(driver.registered) == bool(engines)
    model = weakref.ref(model)
    gc.collect()
    assert model() is None
    assert not any(engine() for engine in engines)
    assert not driver.registered


def test_and_its_file_is_let_go_of(path):
    model = OnFile(make_toy(4), path)
    attach(model)
    assert path in {name for name, _ in mapped._OPEN}
    del model
    gc.collect()
    assert path not in {name for name, _ in mapped._OPEN}


def test_where_all_registration_is_refused_there_is_one_warning(path, driver):
    driver.refuses = True
    plain = make_toy(4)
    model = OnFile(plain, path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        attach(model, "auto")
    assert [str(warning.message)[:28] for warning in said] == ["The system refuses to regist"]
    assert torch.equal(model(sample()), plain(sample()))


@pytest.mark.usefixtures("hears_ctrl_c")
def test_an_interrupt_while_a_callback_is_detached_waits_until_it_is(path, monkeypatch):
    plain = make_toy(4)
    model = OnFile(plain, path)
    callback, engine = attach(model)
    detach = engine.detach

    def interrupted(units):
        os.kill(os.getpid(), signal.SIGINT)
        detach(units)

    monkeypatch.setattr(engine, "detach", interrupted)
    with pytest.raises(KeyboardInterrupt):
        callback.detach()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert path not in {name for name, _ in mapped._OPEN}
    callback.attach(model, "cpu")
    assert torch.equal(model(sample()), plain(sample()))


EDITS = {
    "in place": lambda weight: weight.mul_(2),
    "through .data": lambda weight: weight.data.mul_(2),
}
PLACEMENTS = {
    "streamed": lambda: LayerwiseOffload("blocks", host_memory="mapped"),
    "whole": lambda: ModelOffload("", host_memory="mapped"),
    "on the CPU": lambda: CPUExecution(""),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("other", PLACEMENTS)
@pytest.mark.parametrize("one", PLACEMENTS)
def test_an_edit_of_one_model_is_none_of_another_from_the_same_file(path, one, other, edit):
    plain = make_toy(4, width=64)
    first = OnFile(plain, path)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    callbacks = [PLACEMENTS[one](), PLACEMENTS[other]()]
    callbacks[0].attach(first, "cpu")
    callbacks[1].attach(second, "cpu")
    with torch.no_grad():
        EDITS[edit](first.blocks[2].up.weight)
    expected = plain(sample(64))
    changed = first(sample(64))
    assert not torch.equal(changed, expected)
    assert torch.equal(second(sample(64)), expected)
    callbacks[0].detach()
    late = PLACEMENTS[one]()
    late.attach(third, "cpu")
    assert torch.equal(third(sample(64)), expected)
    assert torch.equal(first(sample(64)), changed)
    for callback in (callbacks[1], late):
        callback.detach()


def test_two_components_from_one_file_are_edited_apart(path):
    plain = make_toy(4, width=64)
    one = OnFile(plain, path)
    both = torch.nn.ModuleDict({"one": one, "other": copy.deepcopy(one)})
    both.weight_sources = {
        f"{name}.{key}": source for name in both for key, source in one.weight_sources.items()
    }
    callbacks = [LayerwiseOffload(name, host_memory="mapped") for name in both]
    for callback in callbacks:
        callback.attach(both, "cpu")
    with torch.no_grad():
        both["one"].blocks[1].down.weight.mul_(2)
        plain.blocks[1].down.weight.mul_(2)
    edited = both["one"](sample(64))
    assert torch.equal(edited, plain(sample(64)))
    plain.blocks[1].down.weight.data.div_(2)
    assert torch.equal(both["other"](sample(64)), plain(sample(64)))
