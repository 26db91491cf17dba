"""What holds on every rank of a world that streams together when adapters come and go."""

import torch.distributed as dist

from distributed.streaming_claims import assert_equal, attach, engine_in, joined, toy_of
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
