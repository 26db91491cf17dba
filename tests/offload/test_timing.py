"""What times an engine's copies changes nothing but that they are timed."""

import itertools

import pytest
import torch
from support.toys import make_toy, sample

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.distributed.gather import InlineGather
from fastvideo_lightning.offload.streams import InlineCopyStream
from fastvideo_lightning.offload.timing import DeviceClock, TimedTransport

CPU = torch.device("cpu")


@pytest.fixture
def streaming():
    model = make_toy(4)
    callback = LayerwiseOffload("blocks")
    callback.attach(model, CPU)
    return model, callback


class Gathered(InlineCopyStream):
    is_gathered = InlineGather.is_gathered


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ranks_stay_in_lockstep_while_any_number_of_reports_time_the_copies(streaming, order):
    model, callback = streaming
    engine = callback.attachments[0].engine
    assert not callback.lockstep
    timed = [engine.time_waits(DeviceClock(CPU))]
    gathered = Gathered()
    engine.use_transport(gathered)  # in the middle of what is timed
    timed += [engine.time_waits(DeviceClock(CPU)) for _ in range(2)]
    assert callback.lockstep
    model(sample())
    assert all(each.take_waits() for each in timed)
    for index in order:
        timed[index].take_waits()
        engine.stop_timing(timed[index])
        engine.stop_timing(timed[index])
        assert callback.lockstep
        model(sample())
        assert not timed[index].take_waits()
    assert engine.transport is gathered


def test_what_is_no_longer_timed_is_the_transport_itself(streaming):
    _, callback = streaming
    engine = callback.attachments[0].engine
    before = engine.transport
    timed = engine.time_waits(DeviceClock(CPU))
    assert isinstance(engine.transport, TimedTransport)
    assert not engine.transport.is_gathered
    engine.stop_timing(timed)
    assert engine.transport is before
