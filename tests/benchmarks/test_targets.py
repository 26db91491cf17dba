"""The table of targets says met, missed or not measured, as the figures are."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import targets
from benchmarks.targets import TARGETS, Results, judge, main, make_page

MACHINE = {"device": "Some GPU", "commit": "abc", "link_bytes_per_s": 50e9, "model": "wan-1.3b"}


def streaming(step_ms: float) -> dict:
    row = {"mode": "streamed-mapped", "frames": 17, "step_ms": step_ms, "beside_ms": 100.0}
    row |= {"streamed_bytes": 10**9, "reserved_gb": 1.0, "setup_s": 1.0}
    return MACHINE | {"rows": [row]}


def verdicts(contents: dict) -> dict[str, str]:
    return {target.name: judge(target, Results(contents))[1] for target in TARGETS}


def test_a_figure_within_the_limit_is_met_and_one_past_it_is_missed():
    name = "1.3B, 17 frames / resident"
    assert verdicts({"streaming-wan-1.3b": streaming(102.9)})[name] == "met"
    assert verdicts({"streaming-wan-1.3b": streaming(103.1)})[name] == "**missed**"


def test_where_more_is_better_less_is_missed():
    caps = [{"frames": 17, "completes": True, "equal": True}]
    caps.append({"frames": 81, "completes": False, "error": "out of memory"})
    found = verdicts({"stages": MACHINE | {"caps": caps}})
    assert found["whole video, 14B, 17 frames under 8 GiB: completes, equal"] == "met"
    assert found["whole video, 14B, 81 frames under 12 GiB: completes, equal"] == "**missed**"


def test_parts_of_several_runs_are_put_together():
    parts = {"stages-a": MACHINE | {"flat": {"reserved_growth": 0.0, "host_rss_growth": 0.2}}}
    parts["stages-b"] = MACHINE | {"moments": {"decode_wait_ms": 3, "hand_over_excess_ms": 80}}
    found = verdicts(parts)
    assert found["50 videos in a row, growth of reserved memory after the third"] == "met"
    assert found["50 videos in a row, growth of host memory after the third"] == "**missed**"
    assert found["VAE decode after the last step, exposed wait"] == "met"
    assert found["two-expert hand-over step against the median step"] == "**missed**"


def test_what_no_result_holds_is_not_measured():
    assert set(verdicts({}).values()) == {"not measured"}


def test_the_page_names_the_machine_of_each_figure(tmp_path):
    (tmp_path / "streaming-wan-1.3b.json").write_text(json.dumps(streaming(100)))
    outcome = CliRunner().invoke(main, ["--results", str(tmp_path)], catch_exceptions=False)
    assert outcome.exit_code == 0
    page = (tmp_path / "targets.md").read_text()
    assert "Some GPU, commit abc" in page
    assert "| 1.3B, 17 frames / resident | <= 1.03 | 1.000 | met |" in page


@pytest.mark.parametrize("commit", ["abc", "def"])
def test_what_was_measured_twice_stands_there_twice(commit):
    again = streaming(104) | {"commit": commit}
    page = make_page(
        Results({"streaming-wan-1.3b": streaming(100), "streaming-again": again}), Results({})
    )
    assert "| 1.3B, 17 frames / resident | <= 1.03 | 1.000, 1.040 | met, **missed** |" in page


def test_over_two_gpus_a_ratio_is_of_one_run_alone():
    name = "14B sharded / FSDP2 with CPU offload, 1 frame"
    target = next(t for t in targets.ON_TWO_GPUS if t.name == name)
    row = {"mode": "streamed-gather", "frames": 1, "step_ms": 84.0}
    other = {"mode": "fsdp-cpu-offload", "frames": 1, "step_ms": 100.0}
    facts = MACHINE | {"model": "wan-14b"}
    apart = {"multi-gpu-a": facts | {"rows": [row]}, "multi-gpu-b": facts | {"rows": [other]}}
    assert judge(target, Results(apart)) == ("-", "not measured")
    together = {"multi-gpu-a": facts | {"rows": [row, other]}}
    assert judge(target, Results(together)) == ("0.840", "met")
    slower = {"multi-gpu-a": facts | {"rows": [row | {"step_ms": 86.0}, other]}}
    assert judge(target, Results(slower)) == ("0.860", "**missed**")


def test_a_process_that_a_killed_one_leaves_behind_has_never_ended():
    target = next(t for t in targets.ON_TWO_GPUS if t.name.startswith("a rank killed"))

    def judged(*rows):
        run = MACHINE | {"rows": [{"seconds": 4.0, "left": left} for left in rows]}
        return judge(target, Results({"killed-wan-14b": run}))

    assert judged(0, 0) == ("4.0", "met")
    assert judged(0, 1) == ("inf", "**missed**")
    assert judged() == ("-", "not measured")
