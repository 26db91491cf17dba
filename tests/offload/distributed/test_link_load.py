"""How fast units are wanted: by cycles of a run, not by what comes once in it."""

from types import SimpleNamespace

import pytest
import torch

from fastvideo_lightning.offload.distributed.link_load import LinkLoad
from fastvideo_lightning.offload.timing import DeviceClock


class Run:
    """Copies at times that it says; links bring 1 MB/s."""

    def __init__(self):
        self.link_load = LinkLoad(DeviceClock(torch.device("cpu")), 1e6)
        self.now = 0.0

    def copy(self, *masters, seconds=1.0):
        for master in masters:
            self.link_load.arrive(master, lambda: self.now)
            self.now += seconds

    def copy_alone(self, *masters, seconds, waits=0.0):
        def copy():
            self.now += seconds

        for master in masters:
            self.link_load.arrive(master, lambda: self.now)
            self.now += waits
            self.link_load.time_alone(master, lambda: self.now, copy)


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
    load_by = run.link_load.take()
    assert load_by(first) == load_by(second) == 4  # 8000 bytes in 2 s
    assert load_by(encoder) == 0
    assert load_by(None) == 0


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_what_came_round_too_seldom_is_unknown(passes):
    run = Run()
    units = masters(3000, 5000)
    for _ in range(passes):
        run.copy(*units)
    assert [run.link_load.take()(unit) for unit in units] == [0, 0]


def test_each_run_counts_for_itself():
    run = Run()
    (unit,) = masters(6000)
    run.copy(*[unit] * 4)
    assert run.link_load.take()(unit) == 6
    run.copy(*[unit] * 4, seconds=3)
    assert run.link_load.take()(unit) == 2
    assert run.link_load.take()(unit) == 0


@pytest.mark.parametrize(("waits", "load"), [(0.0, 1000), (1.0, 667), (6.0, 250)])
def test_units_that_come_alone_tell_what_the_link_brings(waits, load):
    run = Run()
    units = masters(4000, 4000)
    for _ in range(5):
        run.copy_alone(*units, seconds=2.0, waits=waits)  # far from the 1 MB/s that was measured
    assert run.link_load.take()(units[0]) == load


def test_what_copies_told_of_the_link_counts_when_units_come_in_parts_again():
    """Or they would come as a whole again, and in turns from then on."""
    run = Run()
    (unit,) = masters(8000)
    run.copy(*[unit] * 4, seconds=0.01)
    assert run.link_load.take()(unit) == 800  # by the 1 MB/s that was measured
    run.copy_alone(*[unit] * 4, seconds=0.01)
    assert run.link_load.take()(unit) == 1000
    run.copy(*[unit] * 4, seconds=0.01)
    assert run.link_load.take()(unit) == 1000


def test_each_model_of_a_run_counts_for_its_own_units():
    """Such as a text encoder that is called twice, and the denoiser behind it."""
    run = Run()
    encoder, denoiser, other = masters(2000, 3000), masters(4000, 4000), masters(500, 500)
    run.copy(*denoiser)  # for nothing, where the encoder comes first
    run.copy(*encoder * 2, *encoder[:1], seconds=0.5)
    run.copy(*denoiser * 4, seconds=2)
    run.copy(*other * 4, seconds=1)
    load_by = run.link_load.take()
    assert [load_by(unit) for unit in [*encoder, *denoiser, *other]] == [5, 5, 2, 2, 1, 1]


def test_a_unit_that_is_fetched_twice_makes_no_other_look_fast():
    run = Run()
    units = masters(4000, 4000)
    for _ in range(4):
        run.copy(units[0], seconds=2)
        run.copy(units[1], seconds=0.1)  # and given up
        run.copy(units[1], seconds=2)
    assert run.link_load.take()(units[0]) == 2
