"""How fast units are wanted: by cycles of a run, not by what comes once in it."""

from types import SimpleNamespace

import pytest
import torch

from fastvideo_lightning.offload.pace import Pace
from fastvideo_lightning.offload.timing import DeviceClock


class Run:
    """Copies at times that it says."""

    def __init__(self, bytes_per_s=1e6):
        self.pace = Pace(DeviceClock(torch.device("cpu")), bytes_per_s)
        self.now = 0.0

    def copy(self, *masters, seconds=1.0):
        for master in masters:
            self.pace.arrive(master, lambda: self.now)
            self.now += seconds


def masters(*sizes):
    return [SimpleNamespace(layout=SimpleNamespace(size_bytes=size)) for size in sizes]


def test_the_fastest_cycle_counts_and_only_units_within():
    run = Run()
    encoder, first, second, vae = masters(10**9, 3000, 5000, 10**9)
    run.copy(encoder)
    run.copy(first, second, seconds=10)  # while a prompt is encoded, say
    run.copy(first, second, seconds=4)
    run.copy(first, second, seconds=1)
    run.copy(first, second, vae, seconds=2)
    wanted = run.pace.take()
    assert wanted(first) == wanted(second) == 4  # 8000 bytes in 2 s
    assert wanted(encoder) == 0
    assert wanted(None) == 0


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_what_came_round_too_seldom_is_unknown(passes):
    run = Run()
    units = masters(3000, 5000)
    for _ in range(passes):
        run.copy(*units)
    assert [run.pace.take()(unit) for unit in units] == [0, 0]


def test_each_run_counts_for_itself():
    run = Run()
    (unit,) = masters(6000)
    run.copy(*[unit] * 4)
    assert run.pace.take()(unit) == 6
    run.copy(*[unit] * 4, seconds=3)
    assert run.pace.take()(unit) == 2
    assert run.pace.take()(unit) == 0


def test_a_tenth_is_to_spare():
    pace = Run(bytes_per_s=1e6).pace
    assert pace.suffices_alone(899)
    assert not pace.suffices_alone(900)
    assert pace.tell(899) == "0.000899 GB/s are wanted, and links bring 0.001 to each"
