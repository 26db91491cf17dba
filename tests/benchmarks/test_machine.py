"""What a result says of the machine and of the code that was measured."""

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.harness import describe_machine


def test_the_commit_is_that_of_the_benchmark_wherever_it_is_started(tmp_path, monkeypatch):
    monkeypatch.delenv("COMMIT", raising=False)
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not commit:
        pytest.skip("needs the history of this checkout")
    monkeypatch.chdir(tmp_path)
    assert describe_machine(torch.device("cpu"))["commit"] == commit
