"""What holds on every rank of a world that streams together; each is called with its device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.distributed import shard_plan, transport
from fastvideo_lightning.offload.distributed.gather import GatherStream, InlineGather
from fastvideo_lightning.offload.distributed.transport import LinkSpeeds
from tests.support.toys import OnFile, OnMeta, Toy, make_toy, sample

WIDTH = 48


def toy_of(num_blocks: int = 4, seed: int = 0) -> Toy:
    return make_toy(num_blocks, seed=seed, width=WIDTH)


def attach(model: Toy, device: torch.device, how: str = "gather", **options) -> LayerwiseOffload:
    callback = LayerwiseOffload("blocks", shard_transport=how, **options)
    shard_plan.CHUNK_BYTES = 1 << 13  # so that a block of a toy has several; here are ranks alone
    callback.attach(model, device)
    return callback


@contextmanager
def fast_links() -> Iterator[None]:
    """Parts are faster for `auto`, and links fast enough for whole blocks."""
    with mock.patch.object(transport, "measure_links", return_value=LinkSpeeds(1e-12, 1e-9)):
        yield


def attach_with_fast_links(model: Toy, device: torch.device) -> LayerwiseOffload:
    with fast_links():
        return attach(model, device, "auto")


def engine_in(callback: LayerwiseOffload):
    return callback.attachments[0].engine


def assert_equal(model: Toy, plain: Toy, device: torch.device, times: int = 2) -> None:
    plain.to(device)
    x = sample(WIDTH).to(device)
    for _ in range(times):
        assert torch.equal(model(x), plain(x))


def joined(callback: LayerwiseOffload) -> int:
    return engine_in(callback).transport.shared.joined


def make_kind(kind: str, plain: Toy, path) -> Toy:
    if kind == "memory":
        return make_toy(len(plain.blocks), width=plain.embed.in_features)
    if kind == "meta":
        return OnMeta(plain)
    rank = dist.get_rank()
    own = path if rank == 0 else path.with_suffix(f".{rank}")
    model = OnFile(plain, own, cast=["blocks.1.up.weight"])  # each writes one, all read the first
    for name, weight in list(model.weight_sources.items()):
        stored = replace(weight.tensor, path=path)
        model.weight_sources[name] = replace(weight, tensor=stored)
    dist.barrier()
    return model


def streaming_equals_plain(device, kind, how, path, **options):
    plain = toy_of(5)
    model = make_kind(kind, plain, path)
    callback = attach(model, device, how, **options)
    engine = engine_in(callback)
    assert_equal(model, plain, device)
    callback.on_predict_batch_start()
    assert_equal(model, plain, device, times=3)
    callback.on_predict_batch_end()
    engine.check()
    assert isinstance(engine.transport, GatherStream | InlineGather) == (how == "gather")
    assert callback.lockstep == (how == "gather")
    callback.detach()
    assert_equal(model.to(device), plain, device)
    return engine.stats.misses


def each_brings_its_part_alone(device):
    plain = toy_of()
    callback = attach(OnMeta(plain), device)
    engine = engine_in(callback)
    x = sample(WIDTH).to(device)
    callback.attachments[0].root(x)
    size, rank = dist.get_world_size(), dist.get_rank()
    for unit in engine.units:
        found = engine.transport.shared.find(unit.slab)
        mine = [s for chunk in found.chunks for s in chunk.segments] + found.rest
        brought = sum(part.numel() for part, _ in mine)
        assert brought <= unit.size_bytes / size + 512 * size
        assert len(found.chunks) > 1
        assert all(c.own_begin - c.begin == rank * (c.own_end - c.own_begin) for c in found.chunks)
    callback.detach()


def parts_are_pushed(device):
    callback = attach(toy_of(), device)
    engine = engine_in(callback)
    callback.on_predict_batch_start()
    assert engine.ring.slots
    assert all(slot in engine.transport.peers for slot in engine.ring.slots)
    callback.on_predict_batch_end()
    callback.detach()
    assert not len(engine.ring.slots)


def held_and_read(device):
    """Return the bytes held, those of the units, and how often each weight was read here."""
    model = OnMeta(toy_of())
    callback = attach(model, device)
    engine = engine_in(callback)
    held, size = engine.store.size_bytes, sum(unit.size_bytes for unit in engine.units)
    reads = {n: s.reads for n, s in model.weight_sources.items() if n.startswith("blocks.")}
    filled = sum(
        s.tensor.numel() * s.tensor.element_size()
        for n, s in model.weight_sources.items()
        if reads.get(n)
    )
    callback.detach()
    assert engine.store.size_bytes == 0
    return held, size, reads, filled


def pinned_and_held(device):
    callback = attach(OnMeta(toy_of()), device, "local")
    engine = engine_in(callback)
    sizes = sum(unit.size_bytes for unit in engine.units)
    answer = engine.store.pinned_bytes, engine.store.size_bytes, sizes
    callback.detach()
    return answer


def device_memory_is_constant(device):
    model, plain = toy_of(), toy_of()
    callback = attach(model, device)
    engine = engine_in(callback)
    expected = 2 * max(unit.size_bytes for unit in engine.units)
    for _ in range(3):
        assert_equal(model, plain, device)
        assert engine.device_bytes == expected
    callback.detach()


def after_an_exception_it_is_right_again(device, in_batch):
    model, plain = toy_of(), toy_of()
    callback = attach(model, device)
    for block in (0, 2, 3):
        if in_batch:
            callback.on_predict_batch_start()
        assert_equal(model, plain, device, times=1)
        model.blocks[block].fails = True
        with pytest.raises(RuntimeError, match="the block failed"):
            model(sample(WIDTH).to(device))
        model.blocks[block].fails = False
        if in_batch:
            callback.on_exception()
        engine_in(callback).check()
    assert_equal(model, plain, device)
    callback.detach()


def residents_stay_and_the_rest_is_shared(device):
    model, plain = toy_of(6), toy_of(6)
    callback = attach(model, device, resident_blocks=2)
    assert len(engine_in(callback).units) == 4
    callback.on_predict_batch_start()
    assert_equal(model, plain, device, times=3)
    callback.on_predict_batch_end()
    assert joined(callback) > 0
    callback.detach()


def an_order_that_is_not_the_lists_own_is_learned(device):
    plain, model = toy_of(6), toy_of(6)
    plain.order = model.order = [4, 5, 0, 3, 1, 2]
    callback = attach(model, device)
    engine = engine_in(callback)
    callback.on_predict_batch_start()
    assert_equal(model, plain, device, times=3)
    before = engine.stats.copies, engine.stats.misses
    assert_equal(model, plain, device, times=3)
    assert (engine.stats.copies - before[0], engine.stats.misses - before[1]) == (3 * 6, 0)
    callback.on_predict_batch_end()
    engine.check()
    callback.detach()
