from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fastvideo_lightning import VideoModule
from fastvideo_lightning.offload.blocks import find_block_lists
from fastvideo_lightning.offload.tensors import bindings as bindings_module
from fastvideo_lightning.offload.tensors.bindings import (
    find_bindings,
    split_buffers,
    split_by_owner,
)
from fastvideo_lightning.offload.tensors.layout import SlabLayout, TensorSpec
from fastvideo_lightning.offload.tensors.sources import find_source, source_spec
from fastvideo_lightning.pack import pack
from fastvideo_lightning.pack.layout import PackedFile, make_index, plan_files

FindCheckpoint = Callable[[str], Path]
GPU = torch.device("cuda")


class Block(nn.Module):
    """Odd sizes, and a buffer between two weights that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.first.register_buffer("mask", torch.zeros(700), persistent=False)
        self.last = nn.Linear(5, 3)


class Model(nn.Module):
    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.inlet = nn.Linear(2, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
        self.outlet = nn.Linear(3, 2)


def places(file: PackedFile) -> dict[str, tuple[int, int]]:
    begin = len(file.header)
    return {t.name: (begin + t.offset, begin + t.end) for t in file.tensors}


@pytest.mark.parametrize("kind", ["t2v", "i2v_clip"])
def test_each_unit_is_one_range_on_a_page_laid_out_like_its_slot(
    kind: str, checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    module = VideoModule.from_pretrained(
        pack(checkpoint(kind), tmp_path / "packed"), device_type="cuda"
    )
    blocks = {fqn: b for found in find_block_lists(module) for fqn, b in found.blocks}
    units, outside = split_by_owner(find_bindings(module), list(blocks.values()))
    ranges = []
    for fqn, unit in zip(blocks, units, strict=True):
        sources = [find_source(binding, module.weight_sources) for binding in unit]
        layout = SlabLayout([source_spec(source, GPU) for source in sources])
        begin = sources[0].offset
        assert begin % 4096 == 0, fqn
        assert [source.offset - begin for source in sources] == list(layout.offsets), fqn
        assert {source.path for source in sources} == {sources[0].path}, fqn
        assert all(source.stored_dtype == source.dtype_on(GPU) for source in sources), fqn
        ranges.append((sources[0].path, begin, begin + layout.size_bytes))
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in zip(ranges, ranges[1:], strict=False))
    ends = {path: end for path, _, end in ranges}
    for binding in outside:
        if not binding.is_buffer:
            source = find_source(binding, module.weight_sources)
            assert source.offset >= ends.get(source.path, 4096)
            assert source.offset % 512 == 0


def test_a_large_buffer_that_no_file_has_keeps_its_place_in_the_unit(monkeypatch) -> None:
    monkeypatch.setattr(bindings_module, "STAYING_BYTES", 0)
    model = Model()
    found = places(plan_files(model, {}, "model")["model.safetensors"])
    bindings = find_bindings(model.blocks[1])
    slot = SlabLayout([TensorSpec.of(binding.tensor) for binding in bindings])
    names = [binding.fqn for binding in bindings]
    begin = found["blocks.1.first.weight"][0]
    assert begin % 4096 == 0
    for name, offset in zip(names, slot.offsets, strict=True):
        if name != "first.mask":
            assert found[f"blocks.1.{name}"][0] == begin + offset
    assert "blocks.1.first.mask" not in found


def test_a_small_buffer_stays_on_the_device_and_has_no_place_in_the_unit() -> None:
    model = Model()
    found = places(plan_files(model, {}, "model")["model.safetensors"])
    moving, buffers = split_buffers(find_bindings(model.blocks[1]))
    assert [binding.fqn for binding in buffers] == ["first.mask"]
    slot = SlabLayout([TensorSpec.of(binding.tensor) for binding in moving])
    begin = found["blocks.1.first.weight"][0]
    for binding, offset in zip(moving, slot.offsets, strict=True):
        assert found[f"blocks.1.{binding.fqn}"][0] == begin + offset


def test_entries_leave_no_holes_and_padding_is_only_where_a_gap_is() -> None:
    file = plan_files(Model(), {}, "model")["model.safetensors"]
    end = 0
    for tensor in file.tensors:
        assert tensor.offset == end
        assert tensor.content is not None or 0 < tensor.size_bytes < 4096 + 700 * 4
        end = tensor.end
    assert len(file.header) % 4096 == 0
    assert file.size_bytes == len(file.header) + end


def test_weights_that_leave_no_gap_need_neither_padding_nor_an_index() -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    files = plan_files(model, {}, "model")
    assert [t.name for t in files["model.safetensors"].tensors] == ["0.weight", "1.weight"]
    assert make_index(files) is None


def test_a_unit_is_never_split_over_two_files() -> None:
    model = Model(num_blocks=5)
    files = plan_files(model, {}, "model", shard_bytes=3 * 4096 + 100)
    assert list(files) == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 1
    homes = {name: path for path, file in files.items() for name in file.names}
    for i in range(5):
        assert len({homes[n] for n in homes if n.startswith(f"blocks.{i}.")}) == 1
    for file in files.values():
        assert file.tensors[0].offset == 0
    index = make_index(files)
    assert index is not None
    assert index["weight_map"] == homes
    assert homes.keys() == model.state_dict().keys()


def test_a_tied_tensor_of_a_library_without_ties_is_there_under_each_name() -> None:
    model = Model()
    model.outlet.bias = model.inlet.bias = nn.Parameter(torch.ones(2))
    found = places(plan_files(model, {}, "model")["model.safetensors"])
    assert found["inlet.bias"] != found["outlet.bias"]


def test_a_tied_tensor_of_transformers_is_there_once(checkpoint: FindCheckpoint) -> None:
    encoder = VideoModule.from_pretrained(checkpoint("t2v"), dtype="fp32")
    encoder.on_predict_start()
    file = plan_files(encoder.get_submodule("text_encoder"), {}, "model")["model.safetensors"]
    assert "shared.weight" in file.names
    assert "encoder.embed_tokens.weight" not in file.names


def test_a_dtype_without_a_name_in_safetensors_is_refused_by_the_weights_name() -> None:
    model = nn.Module()
    model.register_buffer("weight", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"weight is of torch\.complex128"):
        _ = plan_files(model, {}, "model")["model.safetensors"].header
