"""Blocks that travel coded: the bits of plain streaming, in every order and after every edit."""

import pickle

import pytest
import torch

from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload import compression
from fastvideo_lightning.offload.coding import coded
from fastvideo_lightning.offload.coding.exponents import TILE
from fastvideo_lightning.offload.host import mapped
from fastvideo_lightning.offload.host.slab import HostSlab
from tests.support.toys import WideToy, put_on_file

pytestmark = pytest.mark.skipif(not mapped.IS_SUPPORTED, reason="needs /proc/self/pagemap")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A matrix comes in several pieces, as large ones do."""
    monkeypatch.setattr(coded, "PIECE_NUMBERS", 3 * TILE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def x():
    return torch.randn(3, 512, generator=torch.Generator().manual_seed(1)).bfloat16()


def on_file(path, **options):
    model = WideToy()
    put_on_file(model, WideToy(), path, **options)
    return model


def attach(model, **options):
    callback = LayerwiseOffload("blocks", **{"weight_compression": "lossless"} | options)
    callback.attach(model, "cpu")
    return callback, callback.attachments[0].engine


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 1, 0]])
@pytest.mark.parametrize("options", [{}, {"num_slots": 3}, {"resident_blocks": 2}])
def test_coded_blocks_equal_plain_ones(path, order, options):
    model, plain = on_file(path), WideToy()
    model.order = plain.order = order
    callback, engine = attach(model, **options)
    callback.on_predict_batch_start()
    for _ in range(3):
        assert torch.equal(model(x()), plain(x()))
        engine.check()
    callback.on_predict_batch_end()
    callback.detach()
    assert torch.equal(model(x()), plain(x()))


def test_the_host_holds_and_copies_seven_tenths(path):
    callback, engine = attach(on_file(path))
    size_bytes = sum(unit.size_bytes for unit in engine.units)
    assert 0.65 * size_bytes < engine.store.size_bytes < 0.72 * size_bytes
    copied = engine.stats.bytes_copied
    engine.prefetch(engine.units[0])
    assert engine.stats.bytes_copied - copied == engine.units[0].copied_bytes
    assert engine.units[0].copied_bytes < 0.72 * engine.units[0].size_bytes
    callback.detach()
    assert engine.store.size_bytes == 0


@pytest.mark.parametrize("name", ["up.weight", "norm.weight", "shift", "down.weight"])
@pytest.mark.parametrize("way", ["in place", "replaced", "state dict", "data"])
def test_an_edited_block_has_its_edit_and_goes_back_to_plain_bytes(path, name, way):
    model, plain = on_file(path), WideToy()
    callback, engine = attach(model)
    model(x())
    new = torch.randn_like(plain.blocks[2].get_parameter(name))
    for toy in (model, plain):
        owner, _, leaf = name.rpartition(".")
        block = toy.blocks[2].get_submodule(owner)
        if way == "in place":
            block._parameters[leaf].copy_(new)
        elif way == "data":
            block._parameters[leaf].data.copy_(new)
        elif way == "replaced":
            setattr(block, leaf, torch.nn.Parameter(new.clone(), requires_grad=False))
        else:
            toy.load_state_dict({f"blocks.2.{name}": new}, strict=False)
    for _ in range(2):
        assert torch.equal(model(x()), plain(x()))
    assert engine.units[2].slab.coded is None
    assert engine.units[0].slab.coded is not None, "of its neighbours, only those on its pages"
    callback.detach()
    assert torch.equal(model(x()), plain(x()))
    for (key, ours), theirs in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key


def test_what_a_forward_writes_is_kept(path):
    model, plain = on_file(path), WideToy()
    callback, _ = attach(model)

    def write(block, *_):
        block.shift.add_(1)

    for toy in (model, plain):
        toy.blocks[1].register_forward_hook(write)
    for _ in range(3):
        assert torch.equal(model(x()), plain(x()))
    callback.detach()
    assert torch.equal(model.blocks[1].shift, plain.blocks[1].shift)


def test_after_an_exception_the_next_call_is_right(path):
    model, plain = on_file(path), WideToy()
    callback, _ = attach(model)

    def fail(*_):
        raise RuntimeError("the block failed")

    handle = model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the block failed"):
        model(x())
    handle.remove()
    assert torch.equal(model(x()), plain(x()))
    callback.detach()
    assert torch.equal(pickle.loads(pickle.dumps(model))(x()), plain(x()))


def test_weights_that_are_cast_when_they_are_read_come_from_their_slab(path):
    model, plain = on_file(path, cast=["blocks.1.up.weight"]), WideToy()
    callback, engine = attach(model)
    assert torch.equal(model(x()), plain(x()))
    model.blocks[1].up.weight.mul_(2)
    plain.blocks[1].up.weight.mul_(2)
    assert torch.equal(model(x()), plain(x()))
    callback.detach()


def test_weights_in_memory_travel_as_they_are_and_it_is_said(caplog):
    model, plain = WideToy(), WideToy()
    callback, engine = attach(model)
    assert torch.equal(model(x()), plain(x()))
    assert all(unit.slab.coded is None for unit in engine.units)
    assert "4 of 4 blocks travel as they are, blocks.0 first" in caplog.text
    callback.detach()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"host_memory": "courier"}, "cannot be combined with host_memory='courier'"),
        ({"host_memory": "mapped"}, "cannot be combined with host_memory='mapped'"),
        ({"host_memory": "pageable"}, "cannot be combined with host_memory='pageable'"),
        ({"shard_transport": "gather"}, "cannot be combined with shard_transport='gather'"),
        ({"weight_compression": "zip"}, "must be one of none, lossless, got 'zip'"),
    ],
)
def test_what_cannot_be_is_refused(options, what):
    with pytest.raises(ValueError, match=what):
        LayerwiseOffload("blocks", **{"weight_compression": "lossless"} | options)


def test_where_coding_fails_no_memory_of_it_stays_registered(path, monkeypatch):
    """Pinned memory that goes without being unregistered stays known to the driver."""
    made, closed = [], []

    class Watched(HostSlab):
        def __init__(self, layout):
            super().__init__(layout)
            made.append(self)

        def close(self):
            closed.append(self)
            super().close()

    def fail_at_the_second_part(slot, part, code=compression.encode_part):
        if made:
            raise RuntimeError("no memory")
        return code(slot, part)

    monkeypatch.setattr(compression, "HostSlab", Watched)
    monkeypatch.setattr(compression, "encode_part", fail_at_the_second_part)
    model = on_file(path)
    with pytest.raises(RuntimeError, match="no memory"):
        attach(model)
    assert made
    assert set(made) == set(closed)
    monkeypatch.undo()
    callback, _ = attach(model)
    assert torch.equal(model(x()), WideToy()(x()))
    callback.detach()


def test_of_blocks_that_are_held_and_blocks_that_are_read_the_held_ones_are_coded(path):
    model, plain = on_file(path), WideToy()
    callback, engine = attach(model, host_memory={"auto": 2, "courier": 2})
    assert sum(unit.slab.coded is not None for unit in engine.units) == 2
    for _ in range(2):
        assert torch.equal(model(x()), plain(x()))
    callback.detach()
