"""The benchmark of the plan, on a model small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.plan import list_cases, main


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    options = ["--models", "wan-tiny", "--frames", "1,5", "--budgets", "1", "--size", "64x64"]
    outcome = CliRunner().invoke(main, [*options, "--output", str(folder)], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return folder


def test_every_case_is_predicted_and_measured(results):
    rows = json.loads((results / "plan.json").read_text())["rows"]
    assert [(row["frames"], row["budget_gib"]) for row in rows] == [
        (1, None),
        (1, 1.0),
        (5, None),
        (5, 1.0),
    ]
    assert [row["flags"]["dit_layerwise_offload"] for row in rows] == [True, False] * 2
    for row in rows:
        assert row["predicted_bytes"] > 0
        assert row["predicted_s"] > 0
        assert row["measured_s"] > 0


def test_the_table_has_a_line_for_each_row(results):
    lines = (results / "plan.md").read_text().splitlines()
    assert sum(line.startswith("| wan-tiny") for line in lines) == 4


def test_the_longest_videos_come_last():
    cases = list(list_cases(["a", "b"], [1, 17, 81], [6.0]))
    assert [count for _, count, _ in cases] == [17] * 4 + [1] * 4 + [81] * 4
