"""The shell completes what may be typed, as `docs/three-options.md` says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "three-options.md"
SHELLS = re.findall(r"_FASTVIDEO_LIGHTNING_COMPLETE=(\w+)_source", PAGE.read_text(encoding="utf-8"))
_RUN = "import sys; sys.argv = ['fastvideo-lightning']; from fastvideo_lightning.__main__ import "


def ask(what: str, **variables: str) -> str:
    environment = os.environ | {"_FASTVIDEO_LIGHTNING_COMPLETE": what} | variables
    command = [sys.executable, "-c", f"{_RUN}main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_page_names_three_shells():
    assert SHELLS == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_that_asks_the_command(shell):
    said = ask(f"{shell}_source")
    assert f"_FASTVIDEO_LIGHTNING_COMPLETE={shell}_complete" in said


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("fastvideo-lightning pl", {"plan"}),
        ("fastvideo-lightning generate --num-f", {"--num-frames"}),
        ("fastvideo-lightning generate --dtype b", {"bf16"}),
    ],
)
def test_commands_options_and_choices_are_completed(typed, found):
    words = str(len(typed.split()) - 1)
    lines = ask("bash_complete", COMP_WORDS=typed, COMP_CWORD=words).splitlines()
    assert {line.partition(",")[2] for line in lines} == found
