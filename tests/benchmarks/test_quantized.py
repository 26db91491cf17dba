"""The benchmark of quantized weights, on models small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner

import benchmarks.quantized as benchmark


def test_every_kind_is_measured_and_moves_fewer_bytes(tmp_path, monkeypatch):
    pytest.importorskip("torchao", reason="needs torchao")
    monkeypatch.setattr(benchmark, "PROMPTS", benchmark.PROMPTS[:1])
    options = ["--model", "wan-tiny", "--frames", "1,5", "--size", "64x64"]
    options += ["--ways", "resident,streamed"]
    where = ["--folder", str(tmp_path / "weights"), "--output", str(tmp_path)]
    outcome = CliRunner().invoke(benchmark.main, options + where, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    facts = json.loads((tmp_path / "quantized-wan-tiny.json").read_text())
    rows = {(row["kind"], row["way"], row["frames"]): row for row in facts["steps"]}
    assert len(rows) == 3 * 2 * 2
    assert all(row["equal"] for row in rows.values())
    assert all(row["launch_ms"] > 0 for row in rows.values())
    copied = {kind: rows[kind, "streamed", 5]["copied_gb_per_step"] for kind in benchmark.KINDS}
    assert 0 < copied["fp8"] < 0.8 * copied["bf16"]
    assert 0 < copied["int8"] < 0.8 * copied["bf16"]
    assert [row["kind"] for row in facts["videos"]] == ["fp8", "int8"]
    assert all(20 < row["psnr_db"][0] < 100 for row in facts["videos"])
