"""What only a GPU can show: overlap, memory, races."""

import gc

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.gpu import requires_gpu
from tests.gpu.streams import PoisoningStream, SleepingStream
from tests.support.toys import OnFile, OnMeta, Toy, make_toy, sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
WIDTH = 1024


def wide(num_blocks: int = 6, **options) -> Toy:
    return make_toy(num_blocks, width=WIDTH, **options)


def wide_sample() -> torch.Tensor:
    return sample(WIDTH).to(DEVICE)


@pytest.fixture
def expected() -> torch.Tensor:
    return wide().to(DEVICE)(wide_sample())


def attach(toy: Toy, **options) -> LayerwiseOffload:
    callback = LayerwiseOffload("blocks", **options)
    callback.attach(toy, DEVICE)
    return callback


def engine_in(callback):
    return callback.attachments[0].engine


@pytest.mark.parametrize("host_memory", ["auto", "pageable"])
@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_streamed_equals_resident_bit_for_bit(expected, host_memory, num_slots):
    toy = wide()
    callback = attach(toy, host_memory=host_memory, num_slots=num_slots)
    for in_batch in (False, True):
        if in_batch:
            callback.on_predict_batch_start()
        for _ in range(3):
            assert torch.equal(toy(wide_sample()), expected)
            engine_in(callback).check()
    callback.on_predict_batch_end()
    pinned = engine_in(callback).store.pinned_bytes
    assert pinned == (engine_in(callback).store.size_bytes if host_memory == "auto" else 0)
    callback.detach()
    assert torch.equal(toy.to(DEVICE)(wide_sample()), expected)


@pytest.mark.parametrize("transport", [PoisoningStream, SleepingStream])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 3, 0, 1, 4, 2], [2, 0, 2, 1, 2]])
def test_no_slot_is_read_late_or_early(transport, order):
    toy, plain = wide(), wide().to(DEVICE)
    toy.order = plain.order = order
    expected = plain(wide_sample())
    callback = attach(toy)
    engine_in(callback).transport = transport(DEVICE)
    callback.on_predict_batch_start()
    outputs = [toy(wide_sample()) for _ in range(10)]
    callback.on_predict_batch_end()
    assert all(torch.equal(output, expected) for output in outputs)


def test_a_poisoned_slot_shows_where_nothing_is_copied():
    """The poison works: without copies the output is not a number."""

    class Forgetful(PoisoningStream):
        def copy(self, master, slot):
            slot.events()[0].record(self.stream)

    toy = wide()
    callback = attach(toy)
    engine_in(callback).transport = Forgetful(DEVICE)
    toy(wide_sample())
    assert toy(wide_sample()).isnan().any()


def test_device_memory_is_the_slots_and_what_lies_between_and_constant():
    gc.collect()
    torch.cuda.empty_cache()
    before = requested_bytes()
    toy = wide(8)
    callback = attach(toy)
    engine = engine_in(callback)
    between = sum(
        p.numel() * p.element_size() for m in (toy.embed, toy.head) for p in m.parameters()
    )
    between += sum(block.table.numel() * 4 for block in toy.blocks)  # buffers stay
    held = requested_bytes() - before
    assert engine.device_bytes == 2 * max(unit.size_bytes for unit in engine.units)
    assert held == engine.device_bytes + between
    x = wide_sample()
    toy(x)  # the first call of each block is watched
    peaks = [peak_of(toy, x) for _ in range(4)]
    assert max(peaks) == min(peaks)
    callback.detach()
    toy = None
    gc.collect()
    assert requested_bytes() - before == x.numel() * 4
    assert max(peaks) <= peak_of(wide(8).to(DEVICE), x) + 512 * 64


def requested_bytes() -> int:
    """Bytes of all tensors, without what the allocator rounds up."""
    return torch.cuda.memory_stats(DEVICE).get("requested_bytes.all.current", 0)


def peak_of(model: Toy, x: torch.Tensor) -> int:
    """Bytes that a forward takes on top of what is there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    model(x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(DEVICE) - before


def test_the_host_is_never_synchronized_inside_a_forward():
    toy = wide()
    callback = attach(toy)
    x = wide_sample()
    toy(x)
    callback.on_predict_batch_start()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            toy(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    callback.on_predict_batch_end()


def test_copies_run_while_blocks_compute():
    toy = wide(8)
    callback = attach(toy)
    callback.on_predict_batch_start()
    x = torch.randn(16384, WIDTH, device=DEVICE)
    toy(x)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        toy(x)
        torch.cuda.synchronize()
    callback.on_predict_batch_end()
    spans = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    copies = [(a, b) for name, a, b in spans if "Memcpy HtoD" in name]
    kernels = [(a, b) for name, a, b in spans if "Mem" not in name and "offload::" not in name]
    overlapped = [c for c in copies if any(a < c[1] and c[0] < b for a, b in kernels)]
    assert len(copies) == 8
    assert len(overlapped) >= 7


@pytest.mark.parametrize("edit", ["data.add_", "copy_", "assign"])
def test_edits_between_batches_are_not_lost(edit):
    toy, plain = wide(), wide()
    callback = attach(toy)
    for number in range(3):
        callback.on_predict_batch_start()
        result = toy(wide_sample())
        callback.on_predict_batch_end()
        assert torch.equal(result, wide_like(plain)(wide_sample())), number
        for model in (toy, plain):
            weight = model.blocks[number].up.weight
            if edit == "data.add_":
                weight.data.add_(0.25)
            elif edit == "copy_":
                weight.copy_(weight * 1.5)
            else:
                state = {k: v * 1.25 for k, v in model.state_dict().items()}
                assert all(value.device.type == "cpu" for value in state.values())
                model.load_state_dict(state, assign=True)
                model.requires_grad_(False)
    callback.detach()


def wide_like(plain: Toy) -> Toy:
    copy = wide()
    copy.load_state_dict(plain.state_dict())
    return copy.to(DEVICE)


def test_after_an_exception_the_next_forward_is_right(expected):
    toy = wide()
    callback = attach(toy)
    for in_batch in (False, True):
        if in_batch:
            callback.on_predict_batch_start()
        toy.blocks[3].fails = True
        with pytest.raises(RuntimeError, match="the block failed"):
            toy(wide_sample())
        toy.blocks[3].fails = False
        assert torch.equal(toy(wide_sample()), expected)
    callback.on_predict_batch_end()


def test_inputs_on_the_host_are_brought_to_the_device(expected):
    toy = wide()
    attach(toy)
    assert torch.equal(toy(wide_sample().cpu()), expected)


def test_state_dict_is_on_the_host_in_every_state():
    toy = wide()
    attach(toy)
    seen = []
    toy.blocks[1].up.register_forward_pre_hook(
        lambda module, args: seen.extend(toy.state_dict().values())
    )
    toy(wide_sample())
    assert seen
    assert all(value.device.type == "cpu" for value in seen)


def test_meta_weights_reach_only_their_home():
    plain = wide(4)
    toy = OnMeta(plain)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats(DEVICE)["requested_bytes.all.current"]
    callback = LayerwiseOffload("blocks")
    torch.cuda.reset_peak_memory_stats(DEVICE)
    callback.attach(toy, DEVICE)
    between = sum(p.numel() * 4 for m in (toy.embed, toy.head) for p in m.parameters())
    # Not what is allocated: a tensor takes the rest of a free piece with it where that is small.
    peak = torch.cuda.memory_stats(DEVICE)["requested_bytes.all.peak"] - before
    assert peak <= engine_in(callback).device_bytes + between + 64 * 1024
    assert torch.equal(toy(wide_sample()), plain.to(DEVICE)(wide_sample()))


@pytest.mark.parametrize("cast", [set(), {"blocks.1.up.weight", "blocks.2.norm.bias"}])
def test_a_file_is_the_pinned_host_master(expected, cast, tmp_path):
    toy = OnFile(wide(), tmp_path / "model.safetensors", cast=cast)
    callback = attach(toy, host_memory="auto")
    store = engine_in(callback).store
    assert 0 < store.mapped_bytes <= store.pinned_bytes == store.size_bytes
    for in_batch in (False, True):
        if in_batch:
            callback.on_predict_batch_start()
        for _ in range(3):
            assert torch.equal(toy(wide_sample()), expected)
    callback.on_predict_batch_end()
    plain = wide()
    for model in (toy, plain):
        model.blocks[2].up.weight.data.add_(1)
    edited = plain.to(DEVICE)(wide_sample())
    assert torch.equal(toy(wide_sample()), edited)
    assert store.mapped_bytes < store.pinned_bytes == store.size_bytes
    callback.detach()
    assert store.pinned_bytes == 0
    assert torch.equal(toy.to(DEVICE)(wide_sample()), edited)
