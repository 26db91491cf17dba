"""What holds on every rank of a world that streams together; each is called with its device."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, sharding
from fastvideo_lightning.offload import parts, shards
from fastvideo_lightning.offload.gather import GatherStream, InlineGather
from fastvideo_lightning.offload.link import LinkSpeeds
from fastvideo_lightning.offload.shards import find_shard_group
from tests.callbacks.test_adapters import adapt, strip
from tests.offload.test_leaves import Scaled, make_chain
from tests.toys import OnFile, OnMeta, TensorSource, Toy, make_toy, sample

WIDTH = 48


def toy_of(num_blocks: int = 4, seed: int = 0) -> Toy:
    return make_toy(num_blocks, seed=seed, width=WIDTH)


def attach(model: Toy, device: torch.device, how: str = "gather", **options) -> LayerwiseOffload:
    callback = LayerwiseOffload("blocks", shard_transport=how, **options)
    parts.CHUNK_BYTES = 1 << 13  # so that a block of a toy has several; here are ranks alone
    callback.attach(model, device)
    return callback


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
        return toy_of(len(plain.blocks))
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


EDITS: dict[str, Callable[[nn.Parameter, float], object]] = {
    "copy_": lambda w, by: w.copy_(w * by),
    "data.mul_": lambda w, by: w.data.mul_(by),
    "data.replaced": lambda w, by: setattr(w, "data", torch.full_like(w, by)),
}


def edits_are_each_ranks_own(device, edit, who, kind, path):
    """Edit block 1 on all ranks alike, on one, or on each in another way.

    Only where the ranks' bytes are the same is the block brought in parts again.
    """
    plain = toy_of()
    model = make_kind(kind, plain, path)
    options = {"host_memory": "mapped"} if kind == "file" else {}
    callback = attach(model, device, **options)
    rank = dist.get_rank()
    by = {"all": 2.0, "one": 3.0 if rank == 1 else None, "each": 2.0 + rank}[who]
    assert_equal(model, plain, device)
    for _ in range(2):
        if by is not None:
            for toy in (model, plain):
                with torch.no_grad():
                    EDITS[edit](toy.blocks[1].up.weight, by)
        before = joined(callback)
        assert_equal(model, plain, device)
        assert joined(callback) > before  # the others are still brought in parts
    engine = engine_in(callback)
    shared = [engine.transport.shared.find(unit.slab) is not None for unit in engine.units]
    assert shared == [True, who == "all", True, True]
    assert [unit.slab.is_shared for unit in engine.units][0::2] == [True, True]
    engine.check()
    callback.detach()
    assert_equal(model.to(device), plain, device)


def a_state_dict_that_is_loaded_counts(device, assign):
    model, other = toy_of(), toy_of(seed=1)
    callback = attach(model, device)
    model(sample(WIDTH).to(device))
    model.load_state_dict(other.state_dict(), assign=assign)
    for block, source in zip(model.blocks, other.blocks, strict=True):
        block.table.copy_(source.table)
    assert_equal(model, other, device)
    engine = engine_in(callback)
    held, size = engine.store.size_bytes, sum(unit.size_bytes for unit in engine.units)
    assert held <= size / dist.get_world_size() + 4096  # the same on all ranks: held once again
    callback.detach()
    assert_equal(model.to(device), other, device)


def every_rank_sees_all_host_tensors(device, path):
    plain = toy_of()
    for kind in ("meta", "file"):
        model = make_kind(kind, plain, path)
        callback = attach(model, device, host_memory="mapped" if kind == "file" else "pinned")
        assert_equal(model, plain, device)
        shown = model.state_dict()
        expected = {name: value.cpu() for name, value in plain.state_dict().items()}
        assert all(torch.equal(shown[name], value) for name, value in expected.items())
        if dist.get_rank() == 1:
            callback.detach()  # alone: the others do not take part
            model.blocks[0].up.weight.data.zero_()
        dist.barrier()
        after = model.state_dict()["blocks.0.up.weight"]
        assert after.any() == (dist.get_rank() != 1)
        callback.detach()
        plain.cpu()


def weights_that_differ_at_first_stay_each_ranks_own(device):
    rank = dist.get_rank()
    model, plain = toy_of(), toy_of()
    for toy in (model, plain):
        toy.blocks[2].down.weight.data.add_(float(rank))
    callback = attach(model, device)
    assert_equal(model, plain, device)
    assert joined(callback) > 0
    callback.detach()


def adapters_come_and_go(device, on_all):
    """Layers around those of blocks 0, 1 and 3, on all ranks or on one alone."""
    model, plain = toy_of(), toy_of()
    callback = attach(model, device)
    toys = (model, plain) if on_all or dist.get_rank() == 1 else ()
    for change in (adapt, strip, adapt):
        change(*toys)
        before = joined(callback)
        assert_equal(model, plain, device)
        assert joined(callback) > before
        engine_in(callback).check()
    callback.detach()


def quantized_weights_come_by_their_inner_tensors(device):
    chain, plain = make_chain(), make_chain()
    torch.manual_seed(1)
    for one, other in zip(chain, plain, strict=True):  # wide enough to have parts
        values, scale = torch.randint(-9, 9, (64, 64), dtype=torch.int8), torch.rand(64, 1)
        for block in (one, other):
            wide = Scaled(values.clone(), scale.clone())
            block.weight = nn.Parameter(wide, requires_grad=False)
    callback = LayerwiseOffload("", shard_transport="gather")
    callback.attach(chain, device)
    x = torch.ones(2, 64, device=device)

    def expected() -> torch.Tensor:
        y = x
        for block in plain:
            y = y @ (block.weight.values.to(device) * block.weight.scale.to(device))
        return y

    assert torch.equal(chain(x), expected())
    for model in (chain, plain):
        model[1].weight.values.add_(1)
        model[2].weight.scale.data = torch.full((64, 1), 2.0 + dist.get_rank())
    for _ in range(2):
        assert torch.equal(chain(x), expected())
    shared = [unit.slab.is_shared for unit in engine_in(callback).units]
    assert shared[1]  # edited alike, and shared again
    assert joined(callback) > 0
    callback.detach()


class Counting(nn.Module):
    """A block that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3000))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.weight.sum() * self.count


def what_a_forward_writes_is_kept(device):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(*(Counting() for _ in range(4))).requires_grad_(False)

    model, plain = make(), make().to(device)
    callback = LayerwiseOffload("", shard_transport="gather")
    callback.attach(model, device)
    x = torch.ones(2, device=device)
    callback.on_predict_batch_start()
    for _ in range(3):
        assert torch.equal(model(x), plain(x))
    callback.on_predict_batch_end()
    callback.detach()
    assert model[2].count == 3


def other_blocks_on_one_rank_are_refused_on_all(device):
    rank = dist.get_rank()
    with pytest.raises(RuntimeError, match=r"Rank [1-9] has other weights to stream than rank 0"):
        attach(make_toy(4, width=WIDTH + 16 * (rank > 0)), device)
    model, plain = toy_of(), toy_of()
    attach(model, device)
    assert_equal(model, plain, device)


class Broken(TensorSource):
    def read_into(self, out):
        raise OSError("the file is gone")


def a_source_that_fails_on_one_rank_fails_on_all(device):
    """Whichever rank is to read it."""
    plain = toy_of()
    model = OnMeta(plain)
    name = "blocks.2.up.weight"
    whole = model.weight_sources[name]
    model.weight_sources[name] = Broken(whole.tensor)
    with pytest.raises((OSError, RuntimeError), match="the file is gone") as caught:
        attach(model, device)
    model.weight_sources[name] = whole
    callback = attach(model, device)
    assert_equal(model, plain, device)
    callback.detach()
    return type(caught.value).__name__


def ranks_out_of_step_are_told(device):
    model = toy_of()
    callback = attach(model, device)
    model(sample(WIDTH).to(device))
    shared = engine_in(callback).transport.shared
    shared.joined += dist.get_rank()
    with pytest.raises(RuntimeError, match="out of step.*rank 0: .*shard_transport='local'"):
        callback.on_predict_batch_start()
    callback.detach()


def local_ranks_work_apart(device):
    model, plain = toy_of(), toy_of()
    callback = attach(model, device, "local")
    for _ in range(dist.get_rank()):
        assert_equal(model, plain, device)
        with torch.no_grad():
            for toy in (model, plain):
                toy.blocks[0].up.weight.mul_(2)
    callback.detach()


def a_component_may_be_called_by_one_rank(device):
    model, plain = toy_of(), toy_of().to(device)
    head = ModelOffload("head")
    head.attach(model, device)
    callback = attach(model, device)
    if dist.get_rank() == 1:
        x = sample(WIDTH).to(device)
        assert torch.equal(model.head(x), plain.head(x))
    assert_equal(model, plain, device)
    callback.detach()
    head.detach()


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def auto_takes_the_faster(device, speeds):
    """Return what was chosen and said, with speeds that are given or measured."""
    kept = Kept()
    sharding._log.addHandler(kept)
    sharding._log.setLevel(logging.INFO)
    measure = sharding.measure_links
    if speeds is not None:
        sharding.measure_links = lambda *_, **__: LinkSpeeds(*speeds)
    try:
        model, plain = toy_of(), toy_of()
        callback = attach(model, device, "auto")
        assert_equal(model, plain, device)
        chosen = isinstance(engine_in(callback).transport, GatherStream | InlineGather)
        callback.detach()
    finally:
        sharding.measure_links = measure
        sharding._log.removeHandler(kept)
    return chosen, kept.messages


def two_transports_on_one_module_are_refused(device):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = toy_of(), toy_of(seed=1)

    model = Two()
    one = LayerwiseOffload("first", shard_transport="gather")
    one.attach(model, device)
    with pytest.raises(ValueError, match="got shard_transport='local' beside 'gather'"):
        LayerwiseOffload("second", shard_transport="local").attach(model, device)
    two = LayerwiseOffload("second")
    two.attach(model, device)
    assert_equal(model.first, toy_of(), device)
    assert_equal(model.second, toy_of(seed=1), device)
    one.detach()
    two.detach()


def nodes_share_among_themselves(device, num_nodes):
    """As if the ranks were on so many nodes; return what each shares with."""
    home, rank = shards._home, dist.get_rank()
    try:
        shards._FOUND.clear()
        shards._home = lambda: f"node {rank * num_nodes // dist.get_world_size()}"
        group = find_shard_group(device)
        model, plain = toy_of(), toy_of()
        callback = attach(model, device)
        callback.on_predict_batch_start()
        assert_equal(model, plain, device)
        callback.on_predict_batch_end()
        assert callback.lockstep == (group is not None)
        callback.detach()
        return None if group is None else group.ranks
    finally:
        shards._home = home
        shards._FOUND.clear()


def the_group_is_found_once(device):
    assert find_shard_group(device) is find_shard_group(device)
    assert find_shard_group(device).size == dist.get_world_size()
