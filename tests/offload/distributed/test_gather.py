"""What waits for what where ranks push parts; the streams are played."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastvideo_lightning.offload.distributed.gather import GatherStream
from fastvideo_lightning.offload.distributed.shard_plan import Chunk, ShardPlan

DEVICE = torch.device("cuda", 0)


class Event:
    """Knows what is over once it has happened."""

    def __init__(self):
        self.over = set()


class Stream:
    """Knows what is over before the next that it is given may begin."""

    def __init__(self, *_, **__):
        self.over = set()

    @property
    def cuda_stream(self):
        return self

    def wait_event(self, event):
        self.over |= event.over

    def record_event(self, event):
        event.over = set(self.over)


class Slot:
    def __init__(self):
        self._events = Event(), Event()

    def events(self):
        return self._events


class Peers:
    """Notes what is over when the other ranks may write into a slot of this one."""

    def __contains__(self, slot):
        return True

    def enter(self, slot, stream):
        self.over_before_others_write = set(stream.over)

    def bring(self, segments, slot, stream):
        stream.over.add("own part")

    def push(self, chunk, slot, stream):
        assert "own part" in stream.over
        stream.over.add("own push")

    def leave(self, slot, stream):
        stream.over.add("others' pushes")


class Shared:
    joined = 0

    def arrive(self, master, mark):
        pass

    def find(self, master):
        return None if isinstance(master, Whole) else ShardPlan([Chunk(0, 2, 0, 1, [])], [])

    def bring_alone(self, master, mark, copy):
        copy()


class Whole:
    """A unit that comes as a whole."""

    def __init__(self, stream):
        self._stream = stream

    reads, coded = (), None

    @property
    def segments(self):
        self.over_before = set(self._stream.over)
        self._stream.over.add("whole")
        return []


@pytest.fixture
def gather(monkeypatch):
    played = {"Stream": Stream, "Event": Event, "stream": lambda _: nullcontext()}
    computing = Stream()
    for name, made in {**played, "current_stream": lambda _: computing}.items():
        monkeypatch.setattr(torch.cuda, name, made)
    transport = GatherStream(DEVICE, Shared(), Peers())
    transport.computing = computing
    return transport


def test_others_write_behind_the_last_reader_and_this_rank_reads_behind_all_pushes(gather):
    slot, parts = Slot(), SimpleNamespace()
    gather.copy(parts, slot)
    gather.wait(slot)
    assert {"own part", "others' pushes"} <= gather.computing.over
    gather.computing.over.add("reader")
    gather.release(slot)
    gather.copy(parts, slot)
    assert {"reader", "own push"} <= gather.peers.over_before_others_write


def test_others_write_behind_a_whole_unit_that_nobody_waited_for(gather):
    slot = Slot()
    gather.copy(Whole(gather.stream), slot)  # and given up, as a wrong prefetch is
    gather.copy(SimpleNamespace(), slot)
    assert "whole" in gather.peers.over_before_others_write


def test_a_whole_unit_comes_behind_parts_that_nobody_waited_for(gather):
    slot, whole = Slot(), Whole(gather.stream)
    gather.copy(SimpleNamespace(), slot)
    gather.copy(whole, slot)
    assert "others' pushes" in whole.over_before
