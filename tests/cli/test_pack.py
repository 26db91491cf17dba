import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.recorders import read_errors

from fastvideo_lightning.cli.app import run
from fastvideo_lightning.cli.console import LIBRARY_LOGGERS

FindCheckpoint = Callable[[str], Path]
NOT_COUNTED = {"packing.json", "model_index.json"}


@pytest.fixture(autouse=True)
def _quiet_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what the command sets for its own process."""
    import logging
    import warnings

    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "error")
    for name in LIBRARY_LOGGERS:
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


@pytest.fixture
def model(checkpoint: FindCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(checkpoint("t2v"), tmp_path / "model"))


def test_the_folder_is_all_that_goes_to_stdout_and_a_pipe_sees_no_bar(model, capsys) -> None:
    assert run(["pack", "model", "packed"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "packed\n"
    assert re.fullmatch(r"\d+\.\d kB: packed in \d+\.\d s", captured.err.splitlines()[-1])
    assert "\x1b" not in captured.err
    assert "━" not in captured.err
    assert (model.parent / "packed" / "model_index.json").exists()


def test_the_options_reach_the_pack(model, capsys) -> None:
    assert run(["pack", "model", "packed", "--dtype", "fp16"]) == 0
    assert json.loads(Path("packed/packing.json").read_text())["dtype"] == "fp16"
    assert json.loads(Path("packed/text_encoder/config.json").read_text())["dtype"] == "float16"


def test_pickled_weights_are_packed_only_when_that_is_asked_for(model, capsys) -> None:
    weights = model / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert run(["pack", "model", "packed"]) == 2
    first, second = read_errors(capsys)
    assert "pytorch_model.bin is a pickle" in first
    assert "--allow-pickle" in second
    assert run(["pack", "model", "packed", "--allow-pickle"]) == 0
    assert Path("packed/text_encoder/model.safetensors").exists()


WRONG = [
    (["model", "model"], "Cannot pack model into model: neither may be", "another folder"),
    (["model", "model/x"], "Cannot pack model into model/x:", "Pass another folder"),
    (["model", "."], "Cannot pack model into .:", "Pass another folder"),
    (["model", "file"], "There is a file file.", "Pass a folder"),
    (["model", "file/x"], "There is a file file.", "Pass a folder"),
    (["model", "astray"], "astray is a symlink that leads nowhere.", "Delete it, or pass another"),
    (["model", "astray/x"], "astray is a symlink that leads nowhere.", "Delete it, or pass"),
    (["model", "x" * 300], f"Cannot write {'x' * 300}: File name too long", "Pass another folder."),
    (["model", "a\0b"], "OUT must be a folder, got 'a\\x00b'.", "Leave the NUL out."),
    (["model", "full"], "The folder full holds what packing did not write.", "Pass a new one."),
    (["nowhere", "out"], "No folder 'nowhere' here", "Pass an existing folder"),
    (["full", "out"], "full is no diffusers pipeline", "Pass the folder"),
    (["model", "out", "--dtype", "int8"], "Invalid value for '--dtype'", "Pass --dtype auto."),
    (["model", "out", "--variant", "fp8"], "No weights of variant 'fp8'", "Leave variant out"),
    (["model", "out", "--dtyp", "fp16"], "no such option: --dtyp", "Did you mean --dtype?"),
    (["model", "out", "--zzz"], "no such option: --zzz", "See fastvideo-lightning pack --help."),
    (["model"], "Missing argument 'OUT'", "See fastvideo-lightning pack --help."),
]


@pytest.mark.parametrize(("words", "first", "second"), WRONG)
def test_a_wrong_choice_is_one_line_and_a_suggestion(model, capsys, words, first, second) -> None:
    Path("file").touch()
    Path("astray").symlink_to("nowhere")
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    before = sorted(Path().rglob("*"))
    assert run(["pack", *words]) == 2
    lines = read_errors(capsys)
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"Error: {first}")
    assert second in lines[1]
    assert sorted(Path().rglob("*")) == before


def test_a_quantized_component_is_refused_by_its_name(model, capsys) -> None:
    path = Path("model/transformer/config.json")
    config = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "gguf"}}
    path.write_text(json.dumps(config))
    assert run(["pack", "model", "out"]) == 2
    assert read_errors(capsys)[0] == "Error: Quantized: model/transformer."


def test_a_damaged_source_is_named_before_anything_is_written(model, capsys) -> None:
    path = Path("model/vae/diffusion_pytorch_model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert run(["pack", "model", "out"]) == 2
    assert str(path) in read_errors(capsys)[0]
    assert not Path("out").exists()


def test_a_full_disk_is_told_before_anything_is_written(model, capsys, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    free = 20_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, free))
    assert run(["pack", "model", "deep/out"]) == 2
    told = r"Error: No room for deep/out: \d+\.\d kB are needed, 20\.0 kB are free\."
    assert re.fullmatch(told, read_errors(capsys)[0])
    assert not Path("deep").exists()
    free = 10**9
    assert run(["pack", "model", "whole"]) == 0
    files = (path for path in Path("whole").rglob("*") if path.is_file())
    free = sum(path.stat().st_size for path in files if path.name not in NOT_COUNTED) - 1
    assert run(["pack", "model", "deep/out"]) == 2
    free += 1
    assert run(["pack", "model", "deep/out"]) == 0


def test_a_finished_pack_needs_no_room(model, capsys, monkeypatch) -> None:
    assert run(["pack", "model", "out"]) == 0
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 0))
    assert run(["pack", "model", "out"]) == 0


def test_what_fails_while_writing_ends_with_one(model, capsys, monkeypatch) -> None:
    from fastvideo_lightning.pack import files

    monkeypatch.setattr(files, "_checksum", lambda *_: -2)
    assert run(["pack", "model", "out"]) == 1
    lines = read_errors(capsys)
    assert "reads back otherwise than written" in lines[0]
    assert not list(Path("out").rglob("*.partial"))
