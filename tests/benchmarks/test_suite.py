"""All benchmarks one after another, on a model small enough for a CPU."""

import json
from importlib import import_module

import pytest
from click.testing import CliRunner

from benchmarks import suite

SMALL = "--model wan-tiny --frames 1 --size 64x64"


def make(tmp_path, *typed):
    typed = (*typed, "--folder", str(tmp_path / "weights"), "--output", str(tmp_path / "results"))
    outcome = CliRunner().invoke(suite.main, typed, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output.splitlines()


@pytest.mark.parametrize("name", suite.PARTS)
def test_each_part_is_typed_as_its_benchmark_takes_it(name):
    part = suite.PARTS[name]
    command = part.command(limit_s=10, folder="weights", output="results")
    main = import_module(f"benchmarks.{part.module}").main
    main.make_context(part.module, command[3:])  # a UsageError names what it does not take
    known = getattr(import_module(f"benchmarks.{part.module}"), "MODES", {})
    for modes in [command[i + 1] for i, word in enumerate(command) if word == "--modes"]:
        assert {mode.partition("+")[0] for mode in modes.split(",")} <= set(known)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_part_that_fails_does_not_keep_the_next_from_its_turn(tmp_path, monkeypatch):
    broken = suite.Part("streaming", "--model wan-tiny --modes none", 30)
    works = suite.Part("streaming", f"{SMALL} --modes resident --name streaming-one --rounds 1", 60)
    monkeypatch.setattr(suite, "PARTS", {"14b-1": broken, "14b-17": works})
    said = make(tmp_path, "--parts", "14b-1,14b-17")
    assert said[0].startswith("14b-1: failed with code 2: ")
    assert said[1].startswith("14b-17: done")
    results = tmp_path / "results"
    assert "no mode 'none'" in (results / "logs" / "14b-1.log").read_text()
    assert json.loads((results / "streaming-one.json").read_text())["rows"]
    assert (results / "targets.md").is_file()


def test_what_cannot_be_run_here_and_now_is_left_out_and_named(tmp_path):
    said = make(tmp_path, "--parts", "prompts,14b-1", "--limit-s", "1")
    assert said == [
        "prompts: left out, for it wants 2 GPUs",
        "14b-1: no time is left for it",
    ]


def test_a_part_that_does_not_end_is_ended_with_the_processes_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "GRACE_S", 0.5)
    inner = "import time; time.sleep(300)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    log = tmp_path / "log"
    assert suite.run([suite.sys.executable, "-c", code], 1.0, log) == "ended at its limit"
    running = [
        " ".join(process.info["cmdline"] or ())
        for process in suite.psutil.process_iter(["cmdline"])
    ]
    assert not [line for line in running if inner in line]
