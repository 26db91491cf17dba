"""What holds on every rank of a world that streams together when weights change."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from distributed.streaming_claims import (
    WIDTH,
    assert_equal,
    attach,
    engine_in,
    joined,
    make_kind,
    toy_of,
)
from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.callbacks.test_adapters import adapt, strip
from tests.offload.tensors.test_leaves import Scaled, make_chain
from tests.support.toys import sample

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
