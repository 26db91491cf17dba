"""What holds on every rank of a world that streams together when adapters come and go."""

import torch.distributed as dist

from distributed.streaming_claims import (
    assert_equal,
    attach,
    attach_with_fast_links,
    engine_in,
    joined,
    toy_of,
)
from tests.callbacks.test_adapters import adapt, strip


def adapters_are_each_ranks_own(device, who):
    model, plain = toy_of(), toy_of()
    callback = attach(model, device)
    engine = engine_in(callback)
    blocks = (0, 1, 3) if who == "all" or dist.get_rank() == 1 else ()
    assert_equal(model, plain, device)
    for change in (adapt, strip, adapt):
        change(model, plain, blocks=blocks)
        before = joined(callback)
        assert_equal(model, plain, device)
        assert joined(callback) > before
        engine.check()
    assert all(engine.transport.shared.find(unit.slab) is not None for unit in engine.units)
    callback.detach()
    assert_equal(model.to(device), plain, device)


def an_adapter_on_one_rank_changes_no_ranks_way_alone(device):
    """Where a block has other memory on one rank, all still bring it in the same way."""
    model, plain = toy_of(), toy_of()
    callback = attach_with_fast_links(model, device)
    engine = engine_in(callback)
    shared = engine.transport.shared
    blocks = (0, 1, 3) if dist.get_rank() == 1 else ()
    steps = ((None, 1), (adapt, 0), (None, 1), (None, 900), (strip, 0), (adapt, 1), (strip, 0))
    for change, load in steps:  # a load of 0: not known
        if change is not None:
            change(model, plain, blocks=blocks)
        shared._link_load.take = lambda load=load: lambda _: load
        callback.on_predict_batch_start()
        whole = [shared.find(unit.slab) is None for unit in engine.units]
        assert shared.shards.all_gather(whole) == [whole] * dist.get_world_size()
        assert load == 0 or whole == [load == 1] * 4
        assert_equal(model, plain, device)
        callback.on_predict_batch_end()
    callback.detach()
