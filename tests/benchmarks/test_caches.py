"""The benchmark of caches and attention backends, on a model small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.caches import main


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    options = ["--model", "wan-tiny", "--frames", "1", "--size", "64x64", "--steps", "8"]
    where = ["--folder", str(folder / "weights"), "--output", str(folder)]
    outcome = CliRunner().invoke(main, options + where, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    page = (folder / "caches-wan-tiny.md").read_text()
    return json.loads((folder / "caches-wan-tiny.json").read_text()), page


def test_every_cache_makes_the_same_and_copies_less_where_blocks_are_skipped(results):
    facts, page = results
    rows = {(row["cache"], row["placement"]): row for row in facts["cache"]}
    assert all(row["equal"] for row in [*rows.values(), *facts["attention_backend"]])
    for cache in ("first_block", "taylorseer"):
        copied = {
            placement: row["copied_gb_per_step"]
            for (c, placement), row in rows.items()
            if c == cache
        }
        assert copied["plain"] == 0
        assert 0 < copied["skippable"] < 0.9 * copied["streamed"]
        assert rows[cache, "plain"]["computed_share"] < 1
    assert rows["none", "plain"]["computed_share"] == 1
    assert "| first_block | skippable | 1 |" in page


def test_without_time_it_leaves_rows_out(tmp_path):
    options = ["--model", "wan-tiny", "--size", "64x64", "--limit-s", "0"]
    where = ["--folder", str(tmp_path / "weights"), "--output", str(tmp_path)]
    outcome = CliRunner().invoke(main, options + where, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert not (tmp_path / "caches-wan-tiny.json").exists()
