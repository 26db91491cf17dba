"""Ctrl-C in each stage of a batch: nothing half, what was done is said, and the same goes on."""

import os
import signal
from pathlib import Path

import pytest
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from fastvideo_lightning.batch import Manifest
from fastvideo_lightning.batch.manifest import sha256_of
from fastvideo_lightning.cli.app import run
from fastvideo_lightning.output.video import GeneratedVideo

PROMPTS = ["a red circle", "a blue square", "a green circle"]
WORDS = [
    "--accelerator",
    "cpu",
    "--prompts",
    "p.txt",
    "--num-inference-steps",
    "2",
    "--output-path",
    "out",
]
STAGES = {
    "encode": (UMT5EncoderModel, "forward"),
    "denoise": (WanTransformer3DModel, "forward"),
    "decode": (AutoencoderKLWan, "decode"),
    "write": (GeneratedVideo, "save"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, hears_ctrl_c):
    """A folder with three prompts."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("\n".join(PROMPTS))


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_a_stage_leaves_nothing_half_and_the_same_goes_on(stage, monkeypatch, capsys):
    owner, name = STAGES[stage]
    original = getattr(owner, name)
    pressed = []

    def press(*args, **kwargs):
        if any(Path("out").glob("*.mp4")) and not pressed:
            pressed.append(stage)
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, press)
        assert run(["generate", *WORDS]) == 130
    assert pressed
    out, told = capsys.readouterr()
    there = sorted(Path("out").glob("*.mp4"))
    assert 1 <= len(there) < 3
    assert f"Stopped: {len(there)} of 3 videos" in told
    assert "Run the same command again to make the others." in told
    assert "Traceback" not in told
    assert sorted(map(Path, out.split())) == there
    assert {path.name for path in Path("out").iterdir()} == {
        "manifest.jsonl",
        *(path.name for path in there),
    }
    before = {path: path.stat().st_mtime_ns for path in there}
    assert run(["generate", *WORDS]) == 0
    assert {path: path.stat().st_mtime_ns for path in there} == before
    entries = Manifest(Path("out")).read()
    assert sorted(entry.prompt for entry in entries) == sorted(PROMPTS)
    assert all(sha256_of(Path("out") / entry.file) == entry.sha256 for entry in entries)
