import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastvideo_lightning import CheckpointError
from fastvideo_lightning.checkpoint.weights import PADDING, StoredWeight, read_header
from fastvideo_lightning.pack import files
from fastvideo_lightning.pack.files import copy_file, is_finished, write_bytes, write_file
from fastvideo_lightning.pack.layout import PackedFile, plan_files


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 7), nn.Linear(7, 5))


def plan(model: nn.Module, **options) -> PackedFile:
    return plan_files(model, options.get("sources", {}), "model")["model.safetensors"]


def quiet(size_bytes: int) -> None:
    """Stands in for a progress bar."""


def test_a_written_file_holds_the_tensors_and_is_read_without_its_padding(model, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    write_file(plan(model), path, quiet)
    loaded = load_file(path)
    assert any(name.startswith(PADDING) for name in loaded)
    assert read_header(path).keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded[name], weight)
    assert not any(loaded[name].any() for name in loaded.keys() - model.state_dict().keys())


@pytest.mark.parametrize("chunk_bytes", [8, 100, 1 << 20])
def test_a_cast_piece_by_piece_is_the_cast_of_the_whole(
    model, tmp_path, monkeypatch, chunk_bytes
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    save_file(model.state_dict(), tmp_path / "source.safetensors")
    sources = {
        name: StoredWeight(tensor, torch.float32, torch.bfloat16)
        for name, tensor in read_header(tmp_path / "source.safetensors").items()
    }
    pieces = []
    write_file(plan(model, sources=sources), tmp_path / "packed.safetensors", pieces.append)
    loaded = load_file(tmp_path / "packed.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded[name], weight.bfloat16())
    assert max(pieces) <= chunk_bytes


def test_a_tensor_whose_rows_do_not_follow_each_other_is_written_by_its_elements(tmp_path) -> None:
    model = nn.Linear(6, 4)
    model.weight = nn.Parameter(torch.randn(6, 4).t())
    write_file(plan(model), tmp_path / "m.safetensors", quiet)
    assert torch.equal(load_file(tmp_path / "m.safetensors")["weight"], model.weight)


def damage(path: Path, kind: str) -> None:
    raw = bytearray(path.read_bytes())
    if kind == "cut":
        raw = raw[:-1]
    elif kind == "longer":
        raw += b"x"
    else:
        raw[{"header": 40, "tensor": -1, "padding": -5 * 4 - 1}[kind]] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("header", "the header"),
        ("tensor", "'1.bias'"),
        ("padding", "'__padding__"),
        ("cut", "'1.bias'"),
        ("longer", "longer than"),
    ],
)
def test_what_reads_back_otherwise_than_written_is_found_and_left_nowhere(
    model, tmp_path, monkeypatch, kind, named
) -> None:
    def sync_badly(file) -> None:  # stands in for a disk that loses a bit
        sync(file)
        damage(Path(file.name), kind)

    sync = files.sync
    monkeypatch.setattr(files, "sync", sync_badly)
    with pytest.raises(CheckpointError, match=named):
        write_file(plan(model), tmp_path / "m.safetensors", quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["header", "cut", "longer"])
def test_a_file_is_finished_only_with_its_header_and_its_size(model, tmp_path, kind) -> None:
    path, packed = tmp_path / "m.safetensors", plan(model)
    assert not is_finished(packed, path)
    write_file(packed, path, quiet)
    assert is_finished(packed, path)
    damage(path, kind)
    assert not is_finished(packed, path)


def test_no_more_than_two_chunks_are_held_of_a_large_tensor(tmp_path) -> None:
    """Write 400 MB from a sparse file; memory that is not a file's may not grow by it."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads /proc, which only Linux has")
    source = tmp_path / "source.safetensors"
    head = b'{"w":{"dtype":"F32","shape":[200000000],"data_offsets":[0,800000000]}}'
    with source.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 800_000_000)
    stored = StoredWeight(read_header(source)["w"], torch.float32, torch.bfloat16)
    with torch.device("meta"):
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(200_000_000))
    before, peaks = anonymous_bytes(status), []
    packed = plan(model, sources={"w": stored})
    write_file(packed, tmp_path / "m.safetensors", lambda _: peaks.append(anonymous_bytes(status)))
    assert max(peaks) - before < 150e6


def anonymous_bytes(status: Path) -> int:
    line = next(x for x in status.read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_a_copy_keeps_the_time_of_change_and_is_not_made_twice(tmp_path) -> None:
    source, copy = tmp_path / "a.json", tmp_path / "there" / "a.json"
    source.write_text("{}")
    copy_file(source, copy)
    first = copy.stat()
    copy_file(source, copy)
    assert copy.stat().st_ino == first.st_ino
    assert copy.stat().st_mtime_ns == source.stat().st_mtime_ns
    source.write_text("[]  ")
    copy_file(source, copy)
    assert copy.read_text() == "[]  "


@pytest.mark.parametrize(
    "write", [copy_file, lambda source, path: write_bytes(source.read_bytes(), path)]
)
def test_a_small_file_that_does_not_fit_leaves_nothing_and_what_was_there_stays(
    tmp_path, monkeypatch, write
) -> None:
    def no_room(file) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out, source = tmp_path / "out", tmp_path / "source.json"
    out.mkdir()
    (out / "a.json").write_text("before")
    source.write_text("[]")
    monkeypatch.setattr(files, "sync", no_room)
    with pytest.raises(OSError, match="No space left"):
        write(source, out / "a.json")
    assert [path.name for path in out.iterdir()] == ["a.json"]
    assert (out / "a.json").read_text() == "before"
