"""The streaming benchmark, on a model small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.harness import MODES
from benchmarks.report import predict
from benchmarks.streaming import choose_modes, main


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    options = ["--model", "wan-tiny", "--frames", "1,5", "--rounds", "2", "--modes", "all"]
    options += ["--size", "64x64"]
    where = ["--folder", str(folder), "--output", str(folder)]
    outcome = CliRunner().invoke(main, options + where, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return folder


@pytest.mark.exhaustive
def test_every_mode_is_measured_and_gives_what_the_resident_model_gives(results):
    rows = json.loads((results / "streaming-wan-tiny.json").read_text())["rows"]
    ours = {f"streamed-{kind}" for kind in ("mapped", "pinned", "pageable")}
    assert ours | {"resident", "streamed-half-resident", "sequential-offload"} <= {
        row["mode"] for row in rows
    }
    for row in rows:
        assert row["step_ms"] > 0
        assert row["beside_ms"] > 0
        assert row["equal_to_resident"] is True, row["mode"]
        if row["mode"] in ours:
            assert 1 <= row["host_bytes"] / row["host_weight_bytes"] < 1.2  # aligned
    half = next(row for row in rows if row["mode"] == "streamed-half-resident")
    whole = next(row for row in rows if row["mode"] == "streamed-mapped")
    assert half["streamed_bytes"] * 2 == pytest.approx(whole["streamed_bytes"], rel=0.01)


@pytest.mark.exhaustive
def test_the_table_names_the_bound_and_what_other_links_would_do(results):
    page = (results / "streaming-wan-tiny.md").read_text()
    assert "step / bound" in page
    assert "PCIe 3 x16" in page
    assert (results / "streaming-wan-tiny.png").stat().st_size > 1000


@pytest.mark.exhaustive
def test_a_run_out_of_time_leaves_its_first_party_and_ends(tmp_path, results):
    options = ["--model", "wan-tiny", "--frames", "1", "--modes", "all", "--limit-s", "0.01"]
    options += ["--size", "64x64", "--folder", str(results), "--output", str(tmp_path)]
    outcome = CliRunner().invoke(main, options, catch_exceptions=False)
    assert outcome.exit_code == 0
    rows = json.loads((tmp_path / "streaming-wan-tiny.json").read_text())["rows"]
    assert {"resident", "streamed-mapped"} <= {row["mode"] for row in rows}
    assert "sequential-offload" not in {row["mode"] for row in rows}
    assert {row["rounds"] for row in rows} == {1}


def test_a_step_is_predicted_by_the_longer_of_computing_and_copying():
    assert predict(100, 10**9, 25e9).streamed_ms == 100
    assert predict(10, 10**9, 25e9).streamed_ms == pytest.approx(40)
    assert predict(10, 10**9, 25e9).ratio == pytest.approx(4)


def test_modes_that_need_a_gpu_are_named_where_they_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_modes("group-leaf,resident,compiled-resident") == ["resident"]
    said = capsys.readouterr().err
    assert said == "left out, for they need a GPU: compiled-resident, group-leaf\n"
    assert choose_modes("resident,streamed-mapped") == ["resident", "streamed-mapped"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_modes("all") == list(MODES)
    assert capsys.readouterr().err == ""
