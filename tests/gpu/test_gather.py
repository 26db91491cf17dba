"""What only a GPU can show of streaming together: the order of streams, memory that ranks share."""

from weakref import WeakKeyDictionary

import pytest
import torch
from distributed import streaming_claims as claims
from distributed.ranks import World

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.distributed import shard_plan
from fastvideo_lightning.offload.distributed.agreement import SharedUnits
from fastvideo_lightning.offload.distributed.gather import GatherStream
from fastvideo_lightning.offload.distributed.shard_plan import ShardPlan, shard
from tests.gpu import requires_gpu
from tests.gpu.streams import PoisoningStream, SleepingStream
from tests.support.toys import make_toy, sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
WIDTH = 512


class BothRanks(SharedUnits):
    """Plays a second rank as well, which is late: two cannot be had on one GPU."""

    def __init__(self, brings_its_part: bool = True) -> None:
        super().__init__(shards=None, store=None)
        self.others: WeakKeyDictionary = WeakKeyDictionary()
        self.brings_its_part = brings_its_part

    def agree(self, units, *, drain) -> None:
        for unit in units:
            self._plans[unit.slab] = shard(unit.slab, rank=0, num_ranks=2)
            self.others[unit.slab] = shard(unit.slab, rank=1, num_ranks=2)

    def find(self, master) -> ShardPlan | None:
        self.waiting = list(self.others[master].chunks)
        return super().find(master)

    def join(self, chunk, buffer) -> None:
        self.joined += 1
        torch.cuda._sleep(500_000)
        for part, offset in self.waiting.pop(0).segments:
            if self.brings_its_part:
                buffer[offset : offset + part.numel()].copy_(part, non_blocking=True)


class PoisoningGather(PoisoningStream, GatherStream):
    """Spoils a slot on release."""


class SleepingGather(SleepingStream, GatherStream):
    """Delays copies and kernels at random."""

    def __init__(self, device: torch.device, shared: SharedUnits) -> None:
        GatherStream.__init__(self, device, shared)
        self.random = torch.Generator().manual_seed(0)


def stream(transport, shared: SharedUnits, order: list[int], monkeypatch) -> list[torch.Tensor]:
    monkeypatch.setattr(shard_plan, "CHUNK_BYTES", 1 << 19)
    toy = make_toy(6, width=WIDTH)
    toy.order = order
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, DEVICE)
    callback.attachments[0].engine.transport = transport(DEVICE, shared)
    x = sample(WIDTH).to(DEVICE)
    callback.on_predict_batch_start()
    outputs = [toy(x) for _ in range(10)]
    callback.on_predict_batch_end()
    callback.detach()
    return outputs


@pytest.mark.parametrize("transport", [GatherStream, PoisoningGather, SleepingGather])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 3, 0, 1, 4, 2], [2, 0, 2, 1, 2]])
def test_no_slot_is_read_before_it_is_joined_or_written_before_it_is_read(
    transport, order, monkeypatch
):
    plain = make_toy(6, width=WIDTH).to(DEVICE)
    plain.order = order
    expected = plain(sample(WIDTH).to(DEVICE))
    shared = BothRanks()
    outputs = stream(transport, shared, order, monkeypatch)
    assert all(torch.equal(output, expected) for output in outputs)
    assert shared.joined > 10 * len(set(order))


def test_without_the_other_ranks_part_the_output_is_wrong(monkeypatch):
    shared = BothRanks(brings_its_part=False)
    outputs = stream(PoisoningGather, shared, [0, 1, 2, 3, 4, 5], monkeypatch)
    assert outputs[-1].isnan().any()


@pytest.fixture(scope="module")
def two_processes():
    world = World(2, "gloo", device="cuda:0")
    yield world
    world.close()


@pytest.mark.parametrize("kind", ["meta", "file"])
def test_two_processes_register_one_memory_and_stream_from_it(two_processes, kind, tmp_path):
    two_processes.run(
        claims.streaming_equals_plain,
        kind,
        "local",
        tmp_path / "model.safetensors",
        host_memory="mapped" if kind == "file" else "pinned",
    )


@pytest.mark.parametrize("kind", ["memory", "meta", "file"])
def test_two_processes_push_parts_into_each_others_slots(two_processes, kind, tmp_path):
    two_processes.run(claims.parts_are_pushed)
    two_processes.run(
        claims.streaming_equals_plain,
        kind,
        "gather",
        tmp_path / "model.safetensors",
        host_memory="mapped" if kind == "file" else "pinned",
    )


def test_shared_memory_is_pinned_and_each_process_holds_a_part(two_processes):
    for pinned, held, size in two_processes.run(claims.pinned_and_held):
        assert pinned == held
        assert held <= size / 2 + 4096 * 4
