import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident
from fastvideo_lightning.checkpoint.weights import StoredWeight, read_header
from fastvideo_lightning.offload.host import mapped
from fastvideo_lightning.offload.host.mapped import MappedSlab
from fastvideo_lightning.offload.host.slab import Segment
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from tests.support.toys import OnFile, Toy, make_toy, sample

pytestmark = pytest.mark.skipif(not mapped.IS_SUPPORTED, reason="mapped host memory needs Linux")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def attach(model: Toy, kind=LayerwiseOffload, target: str = "blocks"):
    callback = kind(target, host_memory="mapped")
    callback.attach(model, "cpu")
    return callback, callback.attachments[0].engine


def test_streaming_from_the_file_equals_plain_and_holds_no_second_copy(path):
    plain = make_toy(4)
    model = OnFile(plain, path)
    callback, engine = attach(model)
    assert engine.store.size_bytes >= engine.store.mapped_bytes > 0
    assert path in {name for name, _ in mapped._OPEN}
    assert all(isinstance(master, MappedSlab) for master in engine.store.masters)
    weights = sum(p.numel() * p.element_size() for p in plain.blocks.parameters())
    assert engine.store.size_bytes == weights
    for _ in range(3):
        assert torch.equal(model(sample()), plain(sample()))
        engine.check()
    callback.detach()
    assert torch.equal(model(sample()), plain(sample()))
    assert path not in {name for name, _ in mapped._OPEN}


def test_a_weight_that_needs_a_cast_lies_beside_the_file(path):
    plain = make_toy(4)
    model = OnFile(plain, path, cast={"blocks.1.up.weight", "blocks.2.norm.bias"})
    _, engine = attach(model)
    assert torch.equal(model(sample()), plain(sample()))
    assert model.blocks[1].up.weight.dtype is torch.float32
    engine.check()


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("block", [0, 3])
def test_an_edit_in_place_is_not_lost_and_leaves_the_file_alone(path, block, in_batches):
    plain = make_toy(4, width=64)
    model = OnFile(plain, path)
    before = path.read_bytes()
    callback, engine = attach(model)
    for number in range(3):
        if in_batches:
            callback.on_predict_batch_start()
        assert torch.equal(model(sample(64)), plain(sample(64))), number
        if in_batches:
            callback.on_predict_batch_end()
        for toy in (model, plain):
            toy.blocks[block].up.weight.data.mul_(1.5)
            toy.blocks[block].norm.bias.data[3] = 7.0
    assert torch.equal(model(sample(64)), plain(sample(64)))
    assert path.read_bytes() == before
    assert not isinstance(engine.units[block].slab, MappedSlab)
    assert isinstance(engine.units[3 - block].slab, MappedSlab)
    callback.detach()
    assert torch.equal(model(sample(64)), plain(sample(64)))


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_over_a_mapped_model_is_not_lost(path, assign):
    model, other = OnFile(make_toy(4), path), make_toy(4, seed=1)
    _, engine = attach(model)
    model(sample())
    model.load_state_dict(other.state_dict(), assign=assign)
    for block, source in zip(model.blocks, other.blocks, strict=True):
        block.table.copy_(source.table)
    assert torch.equal(model(sample()), other(sample()))
    engine.check()
    assert torch.equal(load_file(path)["head.bias"], make_toy(4).head.bias)


def test_reading_a_weight_is_no_edit(path):
    model = OnFile(make_toy(4), path)
    _, engine = attach(model)
    assert sum(value.double().sum() for value in model.state_dict().values()) != 0
    model(sample())
    assert all(isinstance(unit.slab, MappedSlab) for unit in engine.units)


def test_neighbours_in_the_file_are_one_segment_up_to_the_end_of_a_registration(path, monkeypatch):
    tensors = {f"t{i}": torch.full((256,), float(i)) for i in range(6)}
    save_file(tensors, path)
    stored = read_header(path)
    sources = [StoredWeight(stored[n], torch.float32, torch.float32) for n in sorted(tensors)]
    specs = [mapped_spec(source) for source in sources]
    slab = MappedSlab(SlabLayout(specs), sources, mapped.PrivateMappings())
    assert len(slab.segments) == 1
    slab.close()
    chunk = sources[2].offset + 512
    monkeypatch.setattr(mapped, "CHUNK_BYTES", chunk)
    slab = MappedSlab(SlabLayout(specs), sources, mapped.PrivateMappings())
    assert len(slab.segments) > 1
    moved = torch.zeros(slab.layout.size_bytes, dtype=torch.uint8)
    for segment in slab.segments:
        assert isinstance(segment, Segment)
        begin = segment.part.data_ptr() - slab._ranges[0][0].shared.data_ptr()
        assert begin // chunk == (begin + segment.part.numel() - 1) // chunk
        moved[segment.offset : segment.offset + segment.part.numel()] = segment.part
    assert all(
        torch.equal(view, tensors[name])
        for view, name in zip(slab.layout.views(moved), sorted(tensors), strict=True)
    )
    slab.close()


def mapped_spec(source):
    return TensorSpec.contiguous(source.shape, source.stored_dtype)


def test_a_buffer_that_the_forward_writes_moves_its_unit_off_the_file(path):
    plain = make_toy(4)
    model = OnFile(plain, path)
    callback, engine = attach(model)

    def write(module, args):
        module.norm.bias.add_(0.5)

    for toy in (model, plain):
        toy.blocks[2].register_forward_pre_hook(write)
    callback.on_predict_batch_start()
    for _ in range(3):
        assert torch.equal(model(sample()), plain(sample()))
    callback.on_predict_batch_end()
    assert not isinstance(engine.units[2].slab, MappedSlab)


def test_a_whole_component_comes_from_the_file(path):
    plain = make_toy(2)
    model = OnFile(plain, path)
    _, engine = attach(model, ModelOffload, "")
    weights = sum(p.numel() * p.element_size() for p in plain.parameters())
    assert engine.store.mapped_bytes == engine.store.size_bytes == weights
    assert torch.equal(model(sample()), plain(sample()))


def test_weights_that_cannot_be_mapped_are_refused_with_what_to_type():
    with pytest.raises(ValueError, match="host_memory='mapped'.*pack"):
        LayerwiseOffload("blocks", host_memory="mapped").attach(make_toy(2), "cpu")
    with pytest.raises(
        ValueError, match="one of auto, mapped, pinned, pageable, courier, disk, got 'fast'"
    ):
        LayerwiseOffload("blocks", host_memory="fast")


def test_where_registration_is_refused_weights_get_memory_of_their_own(path, monkeypatch):
    class Driver:
        """Stands in for a driver that refuses the file and takes other memory."""

        def cudaHostRegister(self, address, size, flags):  # noqa: N802
            return 801 if flags else 0

        def cudaHostUnregister(self, address):  # noqa: N802
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Driver)
    plain = make_toy(4)
    model = OnFile(plain, path)
    _, engine = attach(model)
    units = list(engine.units)
    engine.detach()
    engine.store._has_driver = True
    model = OnFile(plain, path)
    callback = LayerwiseOffload("blocks", host_memory="mapped")
    monkeypatch.setattr("fastvideo_lightning.callbacks.layerwise.engine_of", lambda *a, **k: engine)
    with pytest.warns(UserWarning, match="refuses to register the checkpoint's file.*801"):
        callback.attach(model, "cpu")
    assert units
    assert engine.store.mapped_bytes == 0
    assert all(unit.slab.reads for unit in engine.units)
    assert engine.store.pinned_bytes == engine.store.size_bytes
    assert torch.equal(model(sample()), plain(sample()))


def test_within_a_batch_nobody_reads_the_page_table(path, monkeypatch):
    model = OnFile(make_toy(4), path)
    callback, _ = attach(model)
    callback.on_predict_batch_start()
    monkeypatch.setattr(mapped.PrivateMapping, "is_written", lambda *_: pytest.fail("read it"))
    for _ in range(2):
        model(sample())


@pytest.mark.parametrize("cast", [(), ("embed.weight",)])
def test_what_is_computed_on_the_cpu_is_the_file_and_no_copy_of_it(path, cast):
    plain = make_toy(4)
    model = OnFile(plain, path, cast=set(cast))
    before = path.read_bytes()
    callback = CPUExecution("")
    callback.attach(model, "cpu")
    in_file = {name for name, p in model.named_parameters() if mapped.find_in_file(p)}
    assert in_file == {name for name, _ in plain.named_parameters()} - set(cast)
    assert torch.equal(model(sample()), plain(sample()))
    model.head.bias.data.add_(1)
    plain.head.bias.data.add_(1)
    assert torch.equal(model(sample()), plain(sample()))
    callback.detach()
    assert torch.equal(model(sample()), plain(sample()))
    assert path.read_bytes() == before
    assert path not in {name for name, _ in mapped._OPEN}


@pytest.mark.parametrize("way", ["data.mul_", "copy_"])
@pytest.mark.parametrize("kind", [LayerwiseOffload, ModelOffload, CPUExecution, Resident])
def test_an_edit_is_one_models_own_and_not_anothers_of_the_same_file(path, kind, way):
    plain = make_toy(4)
    edited, other = OnFile(plain, path), OnFile(plain, path)
    memory = {} if kind in (CPUExecution, Resident) else {"host_memory": "mapped"}
    target = "blocks" if kind is LayerwiseOffload else ""
    attached = [kind(target, **memory) for _ in range(2)]
    attached[0].attach(edited, "cpu")
    attached[1].attach(other, "cpu")
    for weight in edited.blocks[1].parameters():
        weight.data.mul_(2) if way == "data.mul_" else weight.data.copy_(2 * weight)
    later = OnFile(plain, path)  # the edited model is still there
    attached.append(kind(target, **memory))
    attached[2].attach(later, "cpu")
    for model in (other, later):
        assert torch.equal(model(sample()), plain(sample()))
    assert not torch.equal(edited(sample()), plain(sample()))
