"""The benchmark over several processes, on a model small enough for a CPU."""

import json
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from click.testing import CliRunner
from distributed.ranks import World

from benchmarks import multi_gpu
from benchmarks.models import make_transformer
from benchmarks.multi_gpu import ALONE, Contender, Parts, main, set_up

MODES = [
    "streamed-one",
    "resident",
    "streamed-gather",
    "streamed-local",
    "streamed-gather-pinned",
    "fsdp",
]
MODES += ["streamed-gather+context", "fsdp+context"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_mode_gives_what_the_resident_model_gives_and_the_host_holds_one_copy(tmp_path):
    options = ["--model", "wan-tiny", "--frames", "1,5", "--rounds", "1", "--size", "64x64"]
    options += ["--modes", ",".join(MODES), "--folder", str(tmp_path), "--output", str(tmp_path)]
    options += ["--name", "run-1.3"]
    outcome = CliRunner().invoke(main, options, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    run = json.loads((tmp_path / "run-1.3.json").read_text())
    rows = run["rows"]
    assert set(run["setup"]) == set(MODES)
    assert all(len(run["link_gb_s"][how]) == 2 for how in ("alone", "together"))
    assert min(min(rates) for rates in run["link_gb_s"].values()) > 0
    assert [row["mode"] for row in rows] == [mode for mode in MODES for _ in range(2)]
    assert all(row["step_ms"] > 0 for row in rows)
    assert all(row["difference"] <= ("context" in row["mode"]) * 1e-2 for row in rows)
    host = {row["mode"]: row["host_gb"] for row in rows}
    assert 0 < host["streamed-gather"] == host["streamed-local"] < 0.001
    assert host["streamed-gather-pinned"] == pytest.approx(host["streamed-gather"], rel=0.1)
    assert "| streamed-gather+context | 5 |" in (tmp_path / "run-1.3.md").read_text()


def test_an_unknown_mode_is_refused_with_those_that_there_are():
    outcome = CliRunner().invoke(main, ["--modes", "magic"])
    assert outcome.exit_code == 2
    assert "no mode 'magic'; there are streamed-one, resident, streamed-gather" in outcome.output


class Played:
    """A contender, or what ranks agree on, that notes what it is asked for."""

    log: list[str]
    room = 3
    seconds = 9

    def __init__(self, mode="", device=None, settings=None):
        self.mode, self.device = mode, "cpu"

    def open(self):
        self.log.append(f"open {self.mode}")

    def close(self):
        self.log.append(f"close {self.mode}")

    def have_room(self, num_bytes):
        assert num_bytes == 5 + multi_gpu.ROOM_TO_WORK
        self.room -= 1
        return self.room > 0

    def allow(self, seconds):
        self.seconds -= 1
        return self.seconds > 0


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(multi_gpu, "Contender", Played)
    monkeypatch.setattr(multi_gpu, "empty_caches", lambda device: None)
    Played.log = []
    return {"table": SimpleNamespace(facts={"weight_bytes": 5})}


def test_as_many_are_set_up_as_fit_and_those_that_stream_one_at_a_time(played):
    waiting = ["resident", "streamed-a", "streamed-b", "fsdp"]
    ready = set_up(waiting, Played(), played)
    assert [contender.mode for contender in ready] == ["resident", "streamed-a", "streamed-b"]
    assert waiting == ["fsdp"]
    opened = ["open streamed-a", "open streamed-b"]
    assert Played.log == ["close streamed-a", "close streamed-b", *opened]


def test_nothing_more_is_set_up_when_time_is_up(played, monkeypatch):
    monkeypatch.setattr(Played, "seconds", 2)
    waiting = ["resident", "fsdp", "streamed-a"]
    assert len(set_up(waiting, Played(), played)) == 2
    assert not waiting


def output_in_first_mode(device, folder):
    settings = {"model": "wan-tiny", "folder": folder, "frames": (1,), "size": (64, 64)}
    settings |= {"parts": Parts(), "setup": {}, "expected": {}}
    if dist.get_rank() == 0:
        make_transformer("wan-tiny", folder)
    dist.barrier()
    Contender(ALONE, device, settings).close()
    return {frames: output.tolist() for frames, output in settings["expected"].items()}


@pytest.mark.exhaustive
def test_every_rank_compares_with_what_the_first_mode_gives(tmp_path):
    """Also where that is one process alone; else a rank would compare a later mode with itself."""
    world = World(2, "gloo")
    try:
        first, second = world.run(output_in_first_mode, tmp_path)
    finally:
        world.close()
    assert list(first) == [1]
    assert first == second
