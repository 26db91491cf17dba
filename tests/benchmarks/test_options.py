"""What benchmarks refuse before they write or measure anything."""

import sys
from importlib import import_module

import pytest
from click.testing import CliRunner

MODULES = (
    "streaming",
    "plan",
    "caches",
    "quantized",
    "multi_gpu",
    "prompts",
    "killed_rank",
    "stages",
    "trace",
)


def refuse(module, tmp_path, monkeypatch, *typed, code=2):
    """Type a benchmark that is to end with an error; returns what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    main = import_module(f"benchmarks.{module}").main
    if any("--folder" in option.opts for option in main.params):
        typed = (*typed, "--folder", str(tmp_path / "weights"))
    outcome = CliRunner().invoke(main, [*typed, "--output", str(tmp_path / "results")])
    assert outcome.exit_code == code, outcome.output
    assert not list(tmp_path.iterdir())
    return outcome.output


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize("module", MODULES)
def test_large_models_are_refused_without_a_gpu(module, on_cpu, tmp_path, monkeypatch):
    said = refuse(module, tmp_path, monkeypatch)
    option = "--models" if module == "plan" else "--model"
    assert f"this machine has no GPU; pass `{option} wan-tiny" in said


@pytest.mark.parametrize("models", ["", "wan-tiny"])
def test_the_whole_vae_is_not_decoded_without_a_gpu(models, on_cpu, tmp_path, monkeypatch):
    said = refuse("plan", tmp_path, monkeypatch, f"--models={models}")
    assert "this machine has no GPU; pass `--models wan-tiny --no-decoding`" in said


@pytest.mark.parametrize("module", ["streaming", "trace"])
def test_matplotlib_is_asked_for_before_anything_is_measured(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    typed = ("--model", "wan-tiny", "--size", "32x32", "--frames", "1")
    said = refuse(module, tmp_path, monkeypatch, *typed, code=1)
    assert 'pip install ".[report]"' in said
