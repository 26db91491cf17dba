import pytest
import torch

from fastvideo_lightning.offload import streaming
from fastvideo_lightning.offload.distributed.transport import ShardTransport
from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.streaming import stream
from fastvideo_lightning.offload.tensors.bindings import find_bindings
from fastvideo_lightning.offload.unit import OffloadUnit
from tests.support.toys import make_toy, sample


def start(model, engine, **options):
    names = {f"blocks.{i}": block for i, block in enumerate(model.blocks)}
    units = [OffloadUnit(fqn, block, find_bindings(block, fqn)) for fqn, block in names.items()]
    return stream(
        engine,
        model,
        "",
        units,
        staying=[],
        sources={},
        transport=ShardTransport.LOCAL,
        on_call=lambda: None,
        **options,
    )


def traces(model):
    """What hooks and wraps leave on modules."""
    hooks = [
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
    ]
    return hooks, [sorted(vars(module)) for module in model.modules()]


@pytest.mark.parametrize("skippable", [False, True])
def test_a_model_streams_by_one_call_and_is_left_as_it_came(skippable):
    model, engine = make_toy(4), OffloadEngine()
    expected, before = model(sample()), traces(model)
    streaming = start(model, engine, skippable=skippable)
    assert torch.equal(model(sample()), expected)
    assert engine.stats.copies >= 4
    streaming.remove()
    assert not engine.units
    assert traces(model) == before
    assert torch.equal(model(sample()), expected)


def test_where_a_hook_cannot_be_registered_nothing_stays_attached(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(streaming, "hook_model", refuse)
    model, engine = make_toy(4), OffloadEngine()
    before = traces(model)
    with pytest.raises(RuntimeError, match="no"):
        start(model, engine)
    assert not engine.units
    assert traces(model) == before
