import pytest
import torch

from fastvideo_lightning.offload.distributed import shard_plan
from fastvideo_lightning.offload.distributed.shard_plan import clip, shard
from fastvideo_lightning.offload.host.slab import HostSlab, Segment
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec


class Pieces:
    """A master whose bytes lie in several segments with gaps between them."""

    def __init__(self, size_bytes: int, breaks: list[int]) -> None:
        self.layout = SlabLayout([TensorSpec.contiguous(torch.Size([size_bytes]), torch.uint8)])
        self.bytes = torch.randint(0, 256, (size_bytes,), dtype=torch.uint8)
        ends = [0, *breaks, size_bytes]
        self.segments = [
            Segment(self.bytes[a:b], a) for a, b in zip(ends, ends[1:], strict=False) if a < b
        ]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512 * 2, 5000, 40_000, 65_537])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 12, 1 << 30])
def test_the_ranks_parts_and_the_rest_are_every_byte_once(
    num_ranks, size_bytes, chunk_bytes, monkeypatch
):
    monkeypatch.setattr(shard_plan, "CHUNK_BYTES", chunk_bytes)
    master = Pieces(size_bytes, breaks=[b for b in (100, 700, 30_001) if b < size_bytes])
    slot = torch.zeros(size_bytes, dtype=torch.uint8)
    times = torch.zeros(size_bytes, dtype=torch.int64)
    for rank in range(num_ranks):
        chunks, rest = shard(master, rank=rank, num_ranks=num_ranks)
        rests = rest if rank == 0 else []
        for part, offset in [*(s for chunk in chunks for s in chunk.segments), *rests]:
            slot[offset : offset + part.numel()] = part
            times[offset : offset + part.numel()] += 1
        assert sum(part.numel() for part, _ in rest) < num_ranks * 512
        for chunk in chunks:
            own = chunk.own_end - chunk.own_begin
            assert chunk.end - chunk.begin == num_ranks * own
            assert chunk.own_begin == chunk.begin + rank * own
            inside = [(o, o + p.numel()) for p, o in chunk.segments]
            assert all(chunk.own_begin <= a < b <= chunk.own_end for a, b in inside)
    assert torch.equal(slot, master.bytes)
    assert (times == 1).all()


@pytest.mark.parametrize(("size_bytes", "number"), [(8000, 1), (20_000, 2), (100_000, 4)])
def test_chunks_are_few_alike_and_not_short(size_bytes, number, monkeypatch):
    monkeypatch.setattr(shard_plan, "CHUNK_BYTES", 1 << 13)
    chunks, _ = shard(Pieces(size_bytes, []), rank=0, num_ranks=2)
    sizes = [chunk.end - chunk.begin for chunk in chunks]
    assert len(sizes) == number
    assert max(sizes) - min(sizes) <= number * 1024
    assert number == 1 or min(sizes) >= (1 << 13) - 1024


@pytest.mark.parametrize("size_bytes", [0, 700, 5000, 65_537])
def test_steps_bring_all_and_the_rest_before_the_last_chunk_is_joined(size_bytes, monkeypatch):
    monkeypatch.setattr(shard_plan, "CHUNK_BYTES", 1 << 12)
    found = shard(Pieces(size_bytes, [100]), rank=1, num_ranks=2)
    steps = list(found.steps())
    assert [chunk for _, chunk in steps] == (found.chunks or [None])
    pieces = [segment for segments, _ in steps for segment in segments]
    assert pieces == [*(s for chunk in found.chunks for s in chunk.segments), *found.rest]


def test_clipped_segments_share_their_memory():
    slab = HostSlab(SlabLayout([TensorSpec.contiguous(torch.Size([64]), torch.uint8)]))
    ((part, offset),) = clip(slab.segments, 10, 20)
    part.fill_(7)
    assert offset == 10
    assert slab.buffer[10:20].eq(7).all()
    assert not slab.buffer[:10].any()
