"""The benchmark of a killed process, on a model small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner
from distributed.scripts import environment

from benchmarks.killed_rank import main


@pytest.mark.slow
@pytest.mark.exhaustive
def test_whichever_process_is_killed_the_other_ends_and_the_time_is_that_from_the_kill(
    tmp_path, monkeypatch
):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    options = ["--model", "wan-tiny", "--frames", "5", "--size", "64x64"]
    options += ["--folder", str(tmp_path), "--output", str(tmp_path)]
    outcome = CliRunner().invoke(main, options, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / "killed-wan-tiny.json").read_text())["rows"]
    assert [row["rank"] for row in rows] == [0, 1]
    for row in rows:
        assert 0 < row["seconds"] < 30
        assert row["left"] == 0
        assert row["code"] != 0
    assert "rank 1" in rows[1]["last_line"].lower()
