"""What ranks that stream together agree on, and what they are told when they do not."""

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distributed.streaming_claims import (
    WIDTH,
    assert_equal,
    attach,
    attach_with_fast_links,
    engine_in,
    toy_of,
)
from fastvideo_lightning import PredictLoop
from fastvideo_lightning.callbacks import LayerwiseOffload, MemoryReport, ModelOffload
from fastvideo_lightning.offload.distributed import agreement, process_group, transport
from fastvideo_lightning.offload.distributed.gather import GatherStream, InlineGather
from fastvideo_lightning.offload.distributed.process_group import find_shard_group
from fastvideo_lightning.offload.distributed.transport import LinkSpeeds
from tests.support.toys import OnMeta, TensorSource, make_toy, sample


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


class KeptMessages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def auto_takes_the_faster(device, speeds):
    """Return what was chosen and said, with speeds that are given or measured."""
    kept = KeptMessages()
    transport._log.addHandler(kept)
    transport._log.setLevel(logging.INFO)
    measure = transport.measure_links
    if speeds is not None:
        transport.measure_links = lambda *_, **__: LinkSpeeds(*speeds)
    try:
        model, plain = toy_of(), toy_of()
        callback = attach(model, device, "auto")
        assert_equal(model, plain, device)
        chosen = isinstance(engine_in(callback).transport, GatherStream | InlineGather)
        callback.detach()
    finally:
        transport.measure_links = measure
        transport._log.removeHandler(kept)
    return chosen, kept.messages


def blocks_that_compute_long_come_as_a_whole(device):
    """And in parts again where links are what limits them, or one rank finds that they are."""
    kept = KeptMessages()
    agreement._log.addHandler(kept)
    agreement._log.setLevel(logging.INFO)
    model, plain = toy_of(), toy_of()
    callback = attach_with_fast_links(model, device)
    for load, passes, comes_whole in (
        (None, 4, False),  # nothing is known yet
        (None, 1, True),
        (None, 4, True),  # of one pass nothing is known, so that it stays as it was
        (900, 4, False),
        (899, 4, True),
        (899 + dist.get_rank(), 4, False),  # one finds its link busy
    ):
        shared = engine_in(callback).transport.shared
        if load is not None:
            shared._link_load.take = lambda load=load: lambda _: load
        before = shared.joined
        callback.on_predict_batch_start()
        assert_equal(model, plain, device, times=passes)
        callback.on_predict_batch_end()
        assert (shared.joined == before) == comes_whole, (load, passes)
    assert callback.lockstep
    first, second, *_ = (unit.slab for unit in engine_in(callback).units)
    shared._link_load.take = lambda: lambda master: {first: 500, second: 600}.get(master, 0)
    assert_equal(model, plain, device)
    shared._link_load.take = lambda: lambda master: 900 if master is first else 700
    assert_equal(model, plain, device)
    callback.detach()
    agreement._log.removeHandler(kept)
    return kept.messages


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
    node, rank = process_group._node, dist.get_rank()
    try:
        process_group._FOUND.clear()
        process_group._node = lambda: f"node {rank * num_nodes // dist.get_world_size()}"
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
        process_group._node = node
        process_group._FOUND.clear()


def the_group_is_found_once(device):
    assert find_shard_group(device) is find_shard_group(device)
    assert find_shard_group(device).size == dist.get_world_size()


def a_failure_is_not_skipped_where_ranks_gather(device, has_report):
    """The others wait for the one whose prompt failed: it must end, measured or not."""
    fabric = SimpleNamespace(
        device=device, is_global_zero=False, world_size=dist.get_world_size(), strategy=None
    )
    model, rank = OnMeta(toy_of()), dist.get_rank()
    callback = LayerwiseOffload("blocks", shard_transport="gather")
    callback.attach(model, device)
    fabric.global_rank, fabric._callbacks = rank, [callback]
    report = MemoryReport(quiet=True)
    if has_report:
        report.on_predict_start(fabric, model)
    waits = PredictLoop(fabric)._waits_for_others()
    assert_equal(model, toy_of(), device)
    report.teardown()
    callback.detach()
    return waits
