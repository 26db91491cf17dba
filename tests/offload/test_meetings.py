"""Meetings by flags: who comes first waits for the others, in every meeting anew."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fastvideo_lightning.offload.meetings import FlagMeeting


class Driver:
    """Writes at once and notes what waits; a stream is a number here."""

    def __init__(self):
        self.waiting = []
        self.refuses = 0

    def cuStreamWriteValue32(self, stream, address, value, flags):
        assert flags == 0
        ctypes.c_uint32.from_address(address).value = value
        return (self.refuses,)

    def cuStreamWaitValue32(self, stream, address, value, flags):
        self.waiting.append((stream, address, value))
        return (0,)

    def still_waiting(self):
        def is_below(address, value):
            return ctypes.c_int32(ctypes.c_int32.from_address(address).value - value).value < 0

        return {stream for stream, *what in self.waiting if is_below(*what)}


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    bindings = ModuleType("cuda.bindings")
    bindings.driver = driver
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    return driver


def make(size):
    flags = [torch.zeros(size, dtype=torch.int32) for _ in range(size)]
    return [FlagMeeting(r, flags[r], flags[:r] + flags[r + 1 :]) for r in range(size)]


def let_meet(meeting, rank, monkeypatch):
    stream = SimpleNamespace(cuda_stream=rank)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    meeting.meet()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_all_wait_for_the_last_and_nobody_longer(driver, order, monkeypatch):
    ranks = make(3)
    for _ in range(3):
        for so_far, rank in enumerate(order, 1):
            let_meet(ranks[rank], rank, monkeypatch)
            assert driver.still_waiting() == (set(order[:so_far]) if so_far < 3 else set())


def test_the_count_may_wrap_around(driver, monkeypatch):
    ranks = make(2)
    for meeting in ranks:
        meeting._flags.fill_(-2)
        meeting._count = (1 << 32) - 2
    for _ in range(4):
        let_meet(ranks[0], 0, monkeypatch)
        assert driver.still_waiting() == {0}
        let_meet(ranks[1], 1, monkeypatch)
        assert driver.still_waiting() == set()


def test_a_driver_that_refuses_is_not_passed_over(driver, monkeypatch):
    driver.refuses = 801
    with pytest.raises(RuntimeError, match="refused .*: 801"):
        let_meet(make(2)[0], 0, monkeypatch)
