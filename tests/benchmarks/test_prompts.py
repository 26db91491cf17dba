"""The benchmark of many prompts, on a model small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner
from distributed.scripts import environment

from benchmarks.prompts import main, summarize


@pytest.mark.slow
def test_two_processes_make_the_videos_of_one_and_each_once(tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    options = ["--model", "wan-tiny", "--count", "3", "--steps", "1", "--frames", "5"]
    options += ["--size", "64x64", "--folder", str(tmp_path), "--output", str(tmp_path)]
    outcome = CliRunner().invoke(main, options, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / "prompts-wan-tiny.json").read_text())["rows"]
    runs = [(row["mode"], row["processes"]) for row in rows]
    assert runs == [
        ("streamed", 1),
        ("streamed", 2),
        ("streamed-local", 2),
        ("resident", 1),
        ("resident", 2),
    ]
    assert all(row["videos"] == 3 and row["equal"] for row in rows)
    alone = {row["mode"]: row["seconds"] for row in rows if row["processes"] == 1}
    alone["streamed-local"] = alone["streamed"]
    assert all(row["ratio"] == row["seconds"] / alone[row["mode"]] for row in rows)


def test_a_video_that_differs_or_is_missing_shows(tmp_path):
    def leave(size, rank, digests):
        report = {"seconds": 2.0 / size, "setup_s": 1.0, "digests": digests, "each_s": [1.0]}
        (tmp_path / f"streamed-{size}-{rank}.json").write_text(json.dumps(report))

    leave(1, 0, {"0": "a", "1": "b"})
    leave(2, 0, {"0": "a"})
    leave(2, 1, {"1": "c"})
    runs = [("streamed", 1), ("streamed", 2)]
    rows = summarize(tmp_path, runs, 2)
    assert [row["equal"] for row in rows] == [True, False]
    assert rows[1]["ratio"] == 0.5
    leave(2, 1, {})
    assert not summarize(tmp_path, runs, 2)[1]["equal"]
