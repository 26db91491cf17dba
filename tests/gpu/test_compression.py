"""What only a GPU can show of coded blocks: the kernel's bits, races, graphs, memory."""

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.coding import coded
from fastvideo_lightning.offload.coding.coded import STAGING_BYTES
from fastvideo_lightning.offload.coding.exponents import TILE, decode, encode
from fastvideo_lightning.offload.coding.kernel import decode_into
from tests.gpu import requires_gpu
from tests.gpu.streams import PoisoningStream, SleepingStream
from tests.support.toys import WideToy, put_on_file

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)


@pytest.fixture
def small_pieces(monkeypatch):
    """A matrix comes in several pieces, as large ones do."""
    monkeypatch.setattr(coded, "PIECE_NUMBERS", 3 * TILE)


def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 512, generator=generator).to(DEVICE, torch.bfloat16)


def attach(path, **options):
    model = WideToy(6)
    put_on_file(model, WideToy(6), path)
    callback = LayerwiseOffload("blocks", weight_compression="lossless", **options)
    callback.attach(model, DEVICE)
    return model, callback, callback.attachments[0].engine


@pytest.mark.parametrize("numbers", [2, 34, TILE, TILE + 2, 5 * TILE + 1000])
@pytest.mark.parametrize("kind", ["any bits", "weights", "large", "zeros", "nan", "subnormal"])
def test_the_kernel_gives_back_every_bit_and_writes_nothing_else(numbers, kind):
    generator = torch.Generator(DEVICE).manual_seed(numbers)
    bits = torch.randint(-(1 << 15), 1 << 15, (numbers,), generator=generator, device=DEVICE)
    normal = torch.randn(numbers, generator=generator, device=DEVICE)
    values = {
        "any bits": bits.to(torch.int16).view(torch.bfloat16),
        "weights": (normal * 0.02).bfloat16(),
        "large": (normal * 1e30).bfloat16(),
        "zeros": normal.bfloat16() * 0,
        "nan": normal.bfloat16() * float("nan"),
        "subnormal": (normal * 1e-39).bfloat16(),
    }[kind]
    found = encode(values)
    memory = torch.full((numbers + 64,), 7, dtype=torch.int16, device=DEVICE)
    decode_into(found.data, found.tiles, memory[32:-32].view(torch.uint8))
    assert torch.equal(memory[32:-32], values.view(torch.int16))
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()
    assert torch.equal(decode(found).view(torch.int16), values.view(torch.int16))


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("transport", [None, PoisoningStream, SleepingStream])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 1, 1, 0, 3]])
def test_coded_blocks_equal_resident_ones(small_pieces, tmp_path, num_slots, transport, order):
    plain = WideToy(6).to(DEVICE)
    model, callback, engine = attach(tmp_path / "model.safetensors", num_slots=num_slots)
    plain.order = model.order = order
    if transport is not None:
        engine.use_transport(transport(DEVICE))
    for in_batch in (False, True):
        if in_batch:
            callback.on_predict_batch_start()
        for _ in range(4):
            assert torch.equal(model(x()), plain(x()))
            engine.check()
    callback.on_predict_batch_end()
    callback.detach()
    assert torch.equal(model.to(DEVICE)(x()), plain(x()))


@pytest.mark.parametrize("edited", [False, True])
def test_a_slot_is_shared_by_coded_and_plain_blocks(small_pieces, tmp_path, edited):
    """An edited block travels plainly, on another stream than its neighbours."""
    plain = WideToy(6).to(DEVICE)
    model, callback, engine = attach(tmp_path / "model.safetensors")
    engine.use_transport(SleepingStream(DEVICE))
    if edited:
        model.blocks[2].up.weight.mul_(2)
        plain.blocks[2].up.weight.mul_(2)
    for order in ([0, 1, 2, 3, 4, 5], [2, 0, 2, 3], [0, 1, 2, 3, 4, 5]):
        model.order = plain.order = order
        for _ in range(3):
            assert torch.equal(model(x()), plain(x()))
    assert (engine.units[2].slab.coded is None) == edited
    callback.detach()


def test_graphs_repeat_decoding(small_pieces, tmp_path):
    plain = WideToy(6).to(DEVICE)
    model, callback, _ = attach(tmp_path / "model.safetensors", cuda_graphs=True)
    with torch.no_grad():
        for _ in range(2):
            callback.on_predict_batch_start()
            for step in range(6):
                callback.on_denoise_step_start(step)
                assert torch.equal(model(x() + step), plain(x() + step))
            callback.on_predict_batch_end()
    assert callback.attachments[0].graphed is not None
    callback.detach()


def test_the_device_holds_the_staging_buffers_more(tmp_path):
    _, callback, engine = attach(tmp_path / "model.safetensors")
    before = torch.cuda.memory_allocated(DEVICE)
    assert all(unit.slab.coded is not None and unit.slab.pinned for unit in engine.units)
    engine.prefetch(engine.units[0])
    engine.drain()
    assert torch.cuda.memory_allocated(DEVICE) - before <= STAGING_BYTES
    callback.detach()
