"""The benchmark of many prompts, on a model small enough for a CPU."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from distributed.scripts import environment

from benchmarks.prompts import main, summarize, wait_for


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_make_the_videos_of_one_and_each_once(tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    options = ["--model", "wan-tiny", "--count", "3", "--steps", "1", "--frames", "5"]
    options += ["--rounds", "2"]
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
    assert all(row["fastest_s"] < row["seconds"] < row["slowest_s"] for row in rows)


def test_a_video_that_differs_or_is_missing_in_any_round_shows(tmp_path):
    def leave(size, turn, rank, digests, seconds):
        report = {"seconds": seconds, "setup_s": 1.0, "digests": digests, "each_s": [1.0]}
        (tmp_path / f"streamed-{size}-{turn}-{rank}.json").write_text(json.dumps(report))

    for turn, seconds in enumerate([2.0, 9.0, 4.0]):
        leave(1, turn, 0, {"0": "a", "1": "b"}, seconds)
        leave(2, turn, 0, {"0": "a"}, seconds / 2)
        leave(2, turn, 1, {"1": "b"}, seconds / 4)
    contenders = [("streamed", 1), ("streamed", 2)]
    rows = summarize(tmp_path, contenders, 3, 2)
    assert [row["equal"] for row in rows] == [True, True]
    assert [row["seconds"] for row in rows] == [4.0, 2.0]
    assert rows[1]["ratio"] == 0.5
    leave(2, 1, 1, {"1": "c"}, 1.0)
    assert not summarize(tmp_path, contenders, 3, 2)[1]["equal"]
    leave(2, 1, 1, {}, 1.0)
    row = summarize(tmp_path, contenders, 3, 2)[1]
    assert not row["equal"]
    assert row["videos"] == 1


def test_in_any_order_a_ratio_is_that_to_one_process_and_none_where_there_was_none(tmp_path):
    for mode, size, seconds in (
        ("streamed-local", 2, 3.0),
        ("resident", 2, 3.0),
        ("streamed", 1, 6.0),
    ):
        for rank in range(size):
            report = {
                "seconds": seconds,
                "setup_s": 1.0,
                "digests": {str(rank): "a"},
                "each_s": [1.0],
            }
            (tmp_path / f"{mode}-{size}-0-{rank}.json").write_text(json.dumps(report))
    contenders = [("streamed-local", 2), ("resident", 2), ("streamed", 1)]
    assert [row["ratio"] for row in summarize(tmp_path, contenders, 1, 2)] == [0.5, None, 1.0]


def test_a_process_that_ends_early_ends_the_benchmark(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="ended with 3; never is missing"):
        wait_for(tmp_path / "never", process)
