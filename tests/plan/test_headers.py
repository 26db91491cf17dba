"""A plan of a 14B checkpoint, whose 40 GB are holes in files: reading them would be seen."""

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest

from benchmarks import checkpoints as checkpoints_of_benchmarks
from benchmarks import models
from fastvideo_lightning.cli.app import run

VIDEO = ("--height", "480", "--width", "832", "--num-frames", "17", "--gpu", "RTX 4090")
# A kernel reads ahead of what is asked for, 128 KiB as a rule.
READ_AHEAD_BYTES = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole checkpoint in the published shapes; headers are written, weights are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_write_tiles", lambda *_: None)
        patch.setattr(models, "_tile", lambda *_: None)
        patch.setitem(
            checkpoints_of_benchmarks.VAES, "vae", checkpoints_of_benchmarks.VAES["vae-tiny"]
        )
        root = tmp_path_factory.mktemp("holes")
        return checkpoints_of_benchmarks.write_pipeline("wan-14b", root)


def weight_files(folder):
    files = [path for path in folder.rglob("*.safetensors") if path.stat().st_size > 1e9]
    assert {path.parent.name for path in files} == {"transformer", "text_encoder"}
    return files


def bytes_in_memory(path: Path) -> int:
    """How much of a file the page cache holds: what was read of it, and read ahead."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        seen = np.frombuffer(view, np.uint8)
        pages = np.zeros(-(-len(seen) // mmap.PAGESIZE), np.uint8)
        start, target = (ctypes.c_void_p(array.ctypes.data) for array in (seen, pages))
        refused = libc.mincore(start, ctypes.c_size_t(len(seen)), target)
        del seen
    if refused:
        pytest.skip(f"this system does not say which pages of a file are in memory ({path})")
    return int((pages & 1).sum()) * mmap.PAGESIZE


def test_a_plan_reads_headers_and_no_weight(folder, capsys):
    sizes = {path: path.stat().st_size for path in weight_files(folder)}
    assert sum(sizes.values()) > 39e9
    for dtype in ("auto", "fp8"):
        assert run(["plan", "--model", str(folder), *VIDEO, "--dtype", dtype]) == 0
        assert "streamed" in capsys.readouterr().out
    for path in sizes:
        assert bytes_in_memory(path) <= READ_AHEAD_BYTES, path
    # And what reads is seen.
    path = next(iter(sizes))
    with path.open("rb") as file:
        file.seek(1 << 30)
        file.read(1 << 23)
    assert bytes_in_memory(path) >= 1 << 23


def test_a_plan_of_a_model_in_the_hubs_cache_is_that_of_the_folder(
    folder, tmp_path, capsys, monkeypatch
):
    repository = tmp_path / "models--Wan-AI--Wan2.1-T2V-14B-Diffusers"
    snapshot = repository / "snapshots" / ("a" * 40)
    for path in folder.rglob("*"):
        if path.is_file():
            target = snapshot / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tables = []
    for model in (str(folder), str(snapshot), "Wan-AI/Wan2.1-T2V-14B-Diffusers"):
        assert run(["plan", "--model", model, *VIDEO]) == 0
        tables.append(capsys.readouterr().out.split("\n", 1)[1])
    assert tables[0] == tables[1] == tables[2]
