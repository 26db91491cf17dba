"""Meetings: who comes first waits for the others, in every meeting anew."""

import ctypes

import pytest
import torch

from fastvideo_lightning.offload.distributed.peers import PeerBarrier


class Driver:
    """Writes at once and notes what waits; a stream is a number here."""

    def __init__(self):
        self.waiting = []

    def write(self, address, value, stream):
        ctypes.c_uint32.from_address(address).value = value

    def wait(self, address, value, stream):
        self.waiting.append((stream, address, value))

    def still_waiting(self):
        def is_below(address, value):
            return ctypes.c_int32(ctypes.c_int32.from_address(address).value - value).value < 0

        return {stream for stream, *what in self.waiting if is_below(*what)}


def make(driver, size):
    flags = [torch.zeros(size, dtype=torch.int32) for _ in range(size)]
    return [PeerBarrier(driver, r, flags[r], flags[:r] + flags[r + 1 :]) for r in range(size)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_all_wait_for_the_last_and_nobody_longer(order):
    driver = Driver()
    ranks = make(driver, 3)
    for _ in range(3):
        for so_far, rank in enumerate(order, 1):
            ranks[rank].wait(rank)
            assert driver.still_waiting() == (set(order[:so_far]) if so_far < 3 else set())


def test_the_count_may_wrap_around():
    driver = Driver()
    ranks = make(driver, 2)
    for meeting in ranks:
        meeting._flags.fill_(-2)
        meeting._count = (1 << 32) - 2
    for _ in range(4):
        ranks[0].wait(0)
        assert driver.still_waiting() == {0}
        ranks[1].wait(1)
        assert driver.still_waiting() == set()


def test_a_trial_lets_nobody_wait_and_counts_for_nothing():
    driver = Driver()
    ranks = make(driver, 2)
    for rank, meeting in enumerate(ranks):
        meeting.try_out(rank)
        assert len(driver.waiting) == rank + 1
        assert driver.still_waiting() == set()
    ranks[0].wait(0)
    assert driver.still_waiting() == {0}
    ranks[1].wait(1)
    assert driver.still_waiting() == set()
