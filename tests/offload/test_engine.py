import itertools
import random

import pytest
import torch

from fastvideo_lightning.offload.engine import OffloadEngine
from fastvideo_lightning.offload.tensors.bindings import find_bindings, split_by_owner
from fastvideo_lightning.offload.unit import OffloadUnit, UnitGroup, UnitState
from tests.support.toys import OnMeta, TensorSource, Toy, make_toy, sample


def make_units(toy: Toy) -> list[OffloadUnit]:
    inside, _ = split_by_owner(find_bindings(toy), list(toy.blocks))
    return [
        OffloadUnit(f"blocks.{i}", block, bindings)
        for i, (block, bindings) in enumerate(zip(toy.blocks, inside, strict=True))
    ]


def call(engine: OffloadEngine, unit: OffloadUnit, x: torch.Tensor) -> torch.Tensor:
    engine.wait(unit)
    engine.check()
    out = unit.module(x)
    engine.release(unit)
    engine.check()
    return out


@pytest.fixture
def toy() -> Toy:
    return make_toy(4)


@pytest.fixture
def units(toy: Toy) -> list[OffloadUnit]:
    return make_units(toy)


@pytest.fixture
def engine(units: list[OffloadUnit]) -> OffloadEngine:
    return OffloadEngine(units, "cpu")


def test_a_unit_goes_offloaded_prefetching_resident_offloaded(engine, units):
    assert units[0].state is UnitState.OFFLOADED
    engine.prefetch(units[0])
    assert units[0].state is UnitState.PREFETCHING
    engine.wait(units[0])
    assert units[0].state is UnitState.RESIDENT
    engine.release(units[0])
    assert units[0].state is UnitState.OFFLOADED


def test_verbs_are_idempotent(engine, units):
    engine.prefetch(units[0])
    engine.prefetch(units[0])
    assert engine.stats.copies == 1
    engine.wait(units[0])
    engine.release(units[0])
    engine.release(units[0])
    engine.release(units[1])
    engine.drain()
    engine.drain()
    engine.check()


def test_waiting_for_a_unit_prefetches_the_next_and_in_order_nothing_is_missed(engine, units):
    engine.begin_run()
    x = sample()
    for unit in units * 3:
        x = call(engine, unit, x)
    assert engine.stats.misses == 0
    assert engine.stats.copies == 3 * len(units) + 1
    engine.end_run()
    engine.check()


def test_device_bytes_are_the_slots_before_the_first_copy_and_ever_after(engine, units):
    expected = 2 * max(unit.size_bytes for unit in units)
    assert engine.device_bytes == expected
    for unit in units:
        call(engine, unit, sample())
        assert engine.device_bytes == expected


@pytest.mark.parametrize("num_slots", [2, 3])
def test_each_unit_always_meets_the_same_slot(num_slots):
    units = make_units(make_toy(6))
    engine = OffloadEngine(units, "cpu", num_slots=num_slots)
    engine.begin_run()
    met = {unit: set() for unit in units}
    for unit in units * 3:
        engine.wait(unit)
        met[unit].add(unit.slot)
        engine.release(unit)
    assert all(len(slots) == 1 for slots in met.values())


@pytest.mark.parametrize("first", range(4))
def test_a_unit_meets_its_slot_whichever_is_called_first(engine, units, first):
    for unit in units[first:] + units[:first]:
        engine.wait(unit)
        assert unit.slot is engine.ring.slots[unit.preferred_slot]
        engine.release(unit)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_gives_the_resident_result_and_unknown_orders_only_miss(seed):
    toy, plain = make_toy(4), make_toy(4)
    units = make_units(toy)
    engine = OffloadEngine(units, "cpu")
    rng = random.Random(seed)
    engine.begin_run()
    x = y = sample()
    for i in [rng.randrange(4) for _ in range(40)]:
        x, y = call(engine, units[i], x), plain.blocks[i](y)
        assert torch.equal(x, y)
    engine.end_run()


def test_an_order_that_repeats_is_learned(toy):
    units = make_units(toy)
    engine = OffloadEngine(units, "cpu")
    engine.begin_run()
    for _ in range(4):
        for i in (0, 3, 1, 2):
            call(engine, units[i], sample())
    before = engine.stats.misses
    for _ in range(3):
        for i in (0, 3, 1, 2):
            call(engine, units[i], sample())
    assert engine.stats.misses == before > 0


def test_a_single_detour_does_not_change_the_order(engine, units):
    engine.begin_run()
    for i in (0, 1, 3, 0, 1, 2, 3):
        call(engine, units[i], sample())
    before = engine.stats.misses
    for unit in units:
        call(engine, unit, sample())
    assert engine.stats.misses == before


def test_a_wrong_start_is_one_miss_and_what_was_prefetched_for_it_gives_way(engine, units):
    engine.begin_run()
    for i in (2, 3, 0, 1, 2, 3):
        call(engine, units[i], sample())
    assert engine.stats.misses == 1


def test_a_unit_whose_bytes_are_still_in_its_slot_is_not_copied_again():
    units = make_units(make_toy(2))
    engine = OffloadEngine(units, "cpu")
    engine.begin_run()
    for unit in units * 5:
        call(engine, unit, sample())
    assert engine.stats.copies == 2


def test_a_call_within_a_call_of_the_same_unit_keeps_it_until_the_outer_returns(engine, units):
    engine.wait(units[0])
    engine.wait(units[0])
    engine.release(units[0])
    assert units[0].state is UnitState.RESIDENT
    engine.release(units[0])
    assert units[0].state is UnitState.OFFLOADED


def test_more_units_in_use_than_slots_is_an_error_that_names_them(engine, units):
    engine.wait(units[0])
    engine.wait(units[1])
    with pytest.raises(RuntimeError, match=r"blocks\.2 .*blocks\.0, blocks\.1.*num_slots=3"):
        engine.wait(units[2])
    engine.release(units[0])
    engine.wait(units[2])
    engine.check()


def test_release_all_frees_what_an_exception_left_behind(engine, units, toy):
    engine.wait(units[0])
    engine.wait(units[1])
    engine.end_run()
    engine.check()
    assert all(unit.state is UnitState.OFFLOADED for unit in units)
    assert torch.equal(call(engine, units[2], sample()), make_toy(4).blocks[2](sample()))


def test_detach_of_one_unit_leaves_the_others_in_order(engine, units):
    engine.detach([units[1]])
    engine.check()
    engine.begin_run()
    for unit in (units[0], units[2], units[3]) * 2:
        call(engine, unit, sample())
    assert engine.stats.misses <= 2


def test_detach_of_all_gives_back_every_byte(engine, toy):
    engine.detach()
    assert engine.device_bytes == 0
    assert engine.store.size_bytes == 0
    assert torch.equal(toy(sample()), make_toy(4)(sample()))


def test_host_bytes_are_the_weights_bytes(engine, units):
    tensors = itertools.chain.from_iterable(
        [*block.parameters(), *block.buffers()] for block in (u.module for u in units)
    )
    weights = sum(t.numel() * t.element_size() for t in tensors)
    aligned = 512 * sum(len(unit.bindings) for unit in units)
    assert weights <= engine.store.size_bytes <= weights + aligned


def test_a_failing_source_leaves_nothing_attached(toy):
    units = make_units(toy)
    toy.blocks[3].up._parameters["weight"] = torch.nn.Parameter(torch.empty(4, 4, device="meta"))
    units = make_units(toy)
    engine = OffloadEngine((), "cpu")
    with pytest.raises(RuntimeError, match=r"blocks\.3\.up\.weight is on the meta device"):
        engine.attach(UnitGroup(units))
    assert engine.units == []
    assert engine.store.size_bytes == 0


def test_a_source_that_cannot_be_read_leaves_nothing_attached():
    toy = OnMeta(make_toy(4))
    units = make_units(toy)

    class Broken(TensorSource):
        def read_into(self, out):
            raise OSError("the file is gone")

    broken = toy.weight_sources["blocks.2.up.weight"].tensor
    engine = OffloadEngine((), "cpu")
    with pytest.raises(OSError, match="the file is gone"):
        engine.attach(
            UnitGroup(units), {**toy.weight_sources, "blocks.2.up.weight": Broken(broken)}
        )
    assert engine.units == []
    assert engine.store.size_bytes == 0
    engine.attach(UnitGroup(units), toy.weight_sources)
    assert torch.equal(call(engine, units[2], sample()), make_toy(4).blocks[2](sample()))


def test_a_transient_unit_has_memory_only_while_it_is_used(toy):
    (inside,), _ = split_by_owner(find_bindings(toy), [toy.head])
    unit = OffloadUnit("head", toy.head, inside, transient=True)
    engine = OffloadEngine([unit], "cpu")
    assert engine.device_bytes == 0
    engine.wait(unit)
    assert unit.slot is not None
    assert toy.head.weight.data_ptr() == unit.slot.buffer.data_ptr()
    engine.release(unit)
    assert unit.slot is None
    assert engine.stats.copies == 1


def test_num_slots_below_one_is_refused():
    with pytest.raises(ValueError, match="num_slots must be at least 1, got 0"):
        OffloadEngine((), "cpu", num_slots=0)


def test_one_slot_works_without_overlap(toy):
    units = make_units(toy)
    engine = OffloadEngine(units, "cpu", num_slots=1)
    x = y = sample()
    for unit, block in zip(units, make_toy(4).blocks, strict=True):
        x, y = call(engine, unit, x), block(y)
    assert torch.equal(x, y)
    assert engine.device_bytes == max(unit.size_bytes for unit in units)
