"""The benchmark over several processes, on a model small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.multi_gpu import main

MODES = ["resident", "fsdp", "streamed-local", "streamed-gather", "streamed-gather+context"]


@pytest.mark.slow
def test_every_mode_gives_what_the_resident_model_gives_and_the_host_holds_one_copy(tmp_path):
    options = ["--model", "wan-tiny", "--frames", "1,5", "--rounds", "1", "--size", "64x64"]
    options += ["--modes", ",".join(MODES), "--folder", str(tmp_path), "--output", str(tmp_path)]
    outcome = CliRunner().invoke(main, options, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / "multi-gpu-wan-tiny.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == [mode for mode in MODES for _ in range(2)]
    assert all(row["equal_to_resident"] and row["step_ms"] > 0 for row in rows)
    host = {row["mode"]: row["host_gb"] for row in rows}
    assert 0 < host["streamed-gather"] == host["streamed-local"] < 0.001
    assert "| streamed-gather+context | 5 |" in (tmp_path / "multi-gpu-wan-tiny.md").read_text()


def test_an_unknown_mode_is_refused_with_those_that_there_are():
    outcome = CliRunner().invoke(main, ["--modes", "magic"])
    assert outcome.exit_code == 2
    assert "no mode 'magic'; there are resident, fsdp" in outcome.output
