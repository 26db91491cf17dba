"""The benchmark of the stages, on checkpoints small enough for a CPU."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.checkpoints import write_pipeline
from benchmarks.stages import main


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    options = ["--model", "wan-tiny", "--small-model", "wan-tiny", "--size", "64x64"]
    options += ["--small-size", "32x32", "--frames", "5", "--videos", "5"]
    where = ["--folder", str(folder / "weights"), "--output", str(folder)]
    outcome = CliRunner().invoke(main, options + where, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return json.loads((folder / "stages.json").read_text()), (folder / "stages.md").read_text()


def test_every_part_is_measured_and_right(results):
    facts, page = results
    assert facts["encode"]["equal"] is True
    assert facts["encode"]["streamed"]["streamed_bytes"] > 0
    assert 0 < facts["moments"]["first_step_of_second_expert"] < 12
    assert all(len(steps) == 12 for steps in facts["moments"]["step_ms"])
    assert facts["moments"]["decode_wait_ms"] > 0
    (row,) = facts["caps"]
    assert row["completes"]
    assert row["equal"]
    assert row["frames_std"] > 1
    assert len(facts["flat"]["host_rss_bytes"]) == 5
    for title in ("Encode", "Hand-over", "cap of device memory", "5 videos in a row"):
        assert title in page


def test_two_checkpoints_share_what_is_alike(tmp_path):
    plain = write_pipeline("wan-tiny", tmp_path)
    experts = write_pipeline("wan-tiny", tmp_path, boundary_ratio=0.8)
    encoder = "text_encoder/model.safetensors"
    assert (plain / encoder).samefile(experts / encoder)
    one, two = (
        (experts / name / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("transformer", "transformer_2")
    )
    assert len(one) == len(two)
    assert one != two
