"""Slots that ranks know of each other, where the driver is played."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastvideo_lightning.offload.distributed.peers import PeerSlots


class Driver:
    """Takes note of writes and waits, or refuses one of them."""

    def __init__(self, refuses=None):
        self.refuses = refuses
        self.asked = []

    def write(self, address, value, stream):
        self._take("write", value, stream)

    def wait(self, address, value, stream):
        self._take("wait", value, stream)

    def _take(self, what, value, stream):
        self.asked.append((what, value, stream))
        if what == self.refuses:
            raise RuntimeError(f"The CUDA driver refused to {what}: 801")


@pytest.fixture
def stream(monkeypatch):
    synchronized = []
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: synchronized.append(True))
    stream.synchronized = synchronized
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return stream


def arrange(driver):
    peers = PeerSlots(SimpleNamespace(rank=0, size=2), torch.device("cpu"))
    peers._driver = driver
    flags = [torch.zeros(2, dtype=torch.int32) for _ in range(2)]
    return peers._arrange(flags[0], flags[1:])


def test_a_meeting_is_tried_out_and_over_before_one_that_counts(stream):
    driver = Driver()
    meeting = arrange(driver)
    assert driver.asked == [("write", 0, 7), ("wait", 0, 7)]
    assert stream.synchronized
    meeting.wait(9)
    assert driver.asked[2:] == [("write", 1, 9), ("wait", 1, 9)]


@pytest.mark.parametrize("what", ["write", "wait"])
def test_where_the_driver_refuses_parts_are_joined_in_another_way(stream, what, caplog):
    with caplog.at_level("INFO"):
        assert arrange(Driver(refuses=what)) is None
    assert f"all-gathers, for ranks cannot meet: The CUDA driver refused to {what}" in caplog.text
