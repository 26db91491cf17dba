"""What editors and type checkers see of the options is what there is."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import pytest

from fastvideo_lightning import OffloadConfig, SamplingParams
from fastvideo_lightning.config import OffloadOptions, SamplingOptions

ROOT = Path(__file__).parents[2]
SCRIPT = """
from fastvideo_lightning import VideoGenerator

with VideoGenerator.from_pretrained("tiny-shapes", vae_tiling=True, num_slots=3) as generator:
    video = generator.generate_video("a red circle", num_frames=17, seed=7, save_video=False)
    frames = video.frames
    for each in generator.generate_videos(["a", {"prompt": "b"}], height=64, shard="1/2"):
        print(each.video_path)
"""
WRONG = {
    "dit_layerwise_offlod": ("vae_tiling", "dit_layerwise_offlod"),
    "num_frame": ("num_frames", "num_frame"),
    "seed": ("seed=7", 'seed="x"'),
    "num_slots": ("num_slots=3", 'num_slots="3"'),
}


@pytest.mark.parametrize(
    ("options", "fields"), [(OffloadOptions, OffloadConfig), (SamplingOptions, SamplingParams)]
)
def test_options_are_the_fields_with_their_types_in_their_order(options, fields) -> None:
    hints = {n: t for n, t in get_type_hints(fields).items() if n in fields.__dataclass_fields__}
    assert list(get_type_hints(options).items()) == list(hints.items())


@pytest.mark.exhaustive
@pytest.mark.skipif(find_spec("mypy") is None, reason="needs mypy")
def test_a_type_checker_finds_a_users_mistakes_and_nothing_else(tmp_path: Path) -> None:
    scripts = {"right": SCRIPT, **{name: SCRIPT.replace(*edit) for name, edit in WRONG.items()}}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--cache-dir",
            str(tmp_path / "cache"),
            *scripts_of(scripts),
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert {line.partition(".py:")[0] for line in errors} == set(WRONG), done.stdout
    for name in WRONG:
        assert any(line.startswith(f"{name}.py:") and name in line for line in errors)


def scripts_of(scripts: dict[str, str]) -> list[str]:
    return [f"{name}.py" for name in scripts]
