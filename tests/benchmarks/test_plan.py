"""The benchmark of the plan, on a model small enough for a CPU."""

import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import plan as benchmark
from benchmarks.harness import Deadline
from benchmarks.plan import Steps, make_table
from fastvideo_lightning.plan import find_card

CPU = torch.device("cpu")


@pytest.fixture
def in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ON_DISK", tmp_path / "disk")
    monkeypatch.setattr(benchmark, "IN_MEMORY", tmp_path / "memory" / "weights")
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory" / "weights"


@pytest.fixture
def results(tmp_path, in_memory):
    options = ["--models", "wan-tiny", "--frames", "1,5", "--budgets", "0.001,1,2"]
    options += ["--size", "64x64", "--no-decoding", "--output", str(tmp_path)]
    # A process on a CPU has no allocator to ask for its peak.
    outcome = CliRunner().invoke(benchmark.main, options, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return tmp_path


def test_every_placement_is_predicted_and_measured_once(results, in_memory):
    rows = json.loads((results / "plan.json").read_text())["rows"]
    assert [(row["where"], row["frames"], row["budgets_gib"]) for row in rows] == [
        ("streamed, 0 resident", 1, []),
        ("streamed, 0 resident", 5, []),
        ("resident", 1, [1.0, 2.0]),
        ("resident", 5, [1.0, 2.0]),
    ]
    for row in rows:
        assert row["predicted_bytes"] > 0
        assert row["predicted_s"] > 0
        assert row["measured_s"] > 0
    lines = (results / "plan.md").read_text().splitlines()
    assert sum(line.startswith("| wan-tiny") for line in lines) == 4
    assert not in_memory.exists()


def test_weights_on_the_disk_are_used_where_they_are(in_memory, monkeypatch):
    benchmark.ON_DISK.mkdir()
    (benchmark.ON_DISK / "wan-tiny.safetensors").touch()
    with benchmark.find_folder("wan-tiny") as folder:
        assert folder == benchmark.ON_DISK
    with benchmark.find_folder("wan-1.3b") as folder:
        assert folder == in_memory


def test_placements_of_real_shapes_are_few_and_shared_ones_come_first(tmp_path):
    machine = find_card("H100")
    steps = Steps("wan-14b", tmp_path, (480, 832), machine, machine, CPU, Deadline(1))
    places = steps.list_places([17, 1, 81], [6, 8, 12, 16, 24, 40])
    assert {frames for place in places for frames in place.budgets} == {1, 17, 81}
    assert sum(len(place.budgets) for place in places) >= 18
    assert len(places) < 18
    shared = [len(place.budgets) for place in places]
    assert shared == sorted(shared, reverse=True)
    assert not list(tmp_path.iterdir())


def test_without_time_nothing_is_measured(tmp_path):
    machine = find_card("H100")
    steps = Steps("wan-tiny", tmp_path, (64, 64), machine, machine, CPU, Deadline(0))
    assert list(steps.measure(steps.list_places([1], [1]))) == []


def test_the_page_says_how_many_rows_hold():
    row = {"model": "m", "frames": 1, "budgets_gib": [6.0], "where": "resident", "bound": "link"}
    times = {"predicted_s": 1.0, "predicted_from_table_s": None, "measured_s": 1.0}
    rows = [
        {**row, **times, "predicted_bytes": 105, "measured_bytes": 100},
        {**row, **times, "predicted_bytes": 99, "measured_bytes": 100},
        {**row, **times, "measured_s": 0.8, "predicted_bytes": 111, "measured_bytes": 100},
    ]
    names = dict.fromkeys(("device", "torch", "diffusers", "python", "commit", "size"), "x")
    page = make_table({**names, "rows": rows})
    assert "Of 3 rows, memory holds in 1 (0.990 to 1.110" in page
    assert "and time in 2 (1.000 to 1.250 of" in page
