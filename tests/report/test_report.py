import json
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from fastvideo_lightning.report import (
    Timeline,
    check_report_path,
    draw,
    files,
    summary_lines,
    write_report,
)
from fastvideo_lightning.report.page import make_stage_table, make_step_table
from tests.report.timelines import GIB, make_timeline


def test_five_lines_hold_the_run_against_the_plan():
    lines = summary_lines(make_timeline())
    assert len(lines) == 5
    assert lines[0] == "1 video in 14.00 s: encode 2.00 s, denoise 10.00 s, decode 2.00 s"
    assert lines[1] == "GPU memory: 9.00 GiB reserved, 6.30 GiB in use; the plan said 9.50 GiB"
    assert "36% of the link" in lines[3]
    assert lines[4] == "Stalls: 0.80 s of waiting for copies, 1 block not fetched in time"


def test_a_run_on_the_cpu_says_what_it_has_and_shows_no_column_that_it_cannot_have(tmp_path):
    timeline = make_timeline(plan=None)
    timeline.device, timeline.link_bytes_per_s = "CPU", None
    timeline.spans = [replace(s, moved_bytes=0, stall_s=0.0, misses=0) for s in timeline.spans]
    lines = summary_lines(timeline)
    assert len(lines) == 5
    assert lines[1] == "Denoising: 10 steps of 1.000 s"
    assert "everything ran on the CPU" in lines[4]
    stages, steps = make_stage_table(timeline, 0), make_step_table(timeline, 0, 100)
    assert stages.columns == ["stage", "time, s", "host memory, GiB"]
    assert stages.rows[1] == ["denoise", "10.000", "31.00"]
    assert steps.columns == ["step", "time, s"]
    assert len(steps.rows) == 10


def test_what_was_measured_stands_beside_what_was_planned():
    columns, rows = make_stage_table(make_timeline(), 0)
    assert columns[:5] == ["stage", "time, s", "plan, s", "reserved, GiB", "plan, GiB"]
    assert rows[1][:5] == ["denoise", "10.000", "10.100", "9.00", "9.50"]
    unplanned = make_stage_table(make_timeline(plan=None), 0)
    assert not any("plan" in name for name in unplanned.columns)


def test_a_stage_lower_than_the_one_before_has_its_own_peak():
    peaks = {span.stage: span.peak_reserved_bytes for span in make_timeline().stages(0)}
    assert peaks == {"encode": GIB, "denoise": 9 * GIB, "decode": 4 * GIB}


def test_link_utilisation_is_a_share_of_what_the_link_can_do():
    timeline = make_timeline()
    assert timeline.link_utilisation(timeline.steps(0)[0]) == pytest.approx(28 / 55)
    timeline.link_bytes_per_s = None
    assert timeline.link_utilisation(timeline.steps(0)[0]) is None


def test_the_page_is_one_file_that_asks_nothing_of_a_network_and_escapes_prompts(tmp_path):
    path = write_report(make_timeline(prompts=["<script>alert(1)</script>"]), tmp_path / "r.html")
    page = path.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    for word in ("src=", "@import", "url(http", "<link", "<iframe"):
        assert word not in page
    for word in ("<svg", "encode", "denoise", "decode", "plan, GiB", "of the link"):
        assert word in page


def test_the_picture_has_size_and_the_values_are_all_there(tmp_path):
    timeline = make_timeline()
    picture = Image.open(BytesIO(write_report(timeline, tmp_path / "r.png").read_bytes()))
    assert min(picture.size) > 500
    values = json.loads(write_report(timeline, tmp_path / "r.json").read_text())
    assert len(values["spans"]) == 12
    assert len(values["samples"]) == 140
    assert values["plan"]["reserved_gib"] == 9.5


@pytest.mark.parametrize("kind", ["html", "png", "json"])
def test_a_run_in_which_nothing_was_made_has_a_report_too(kind, tmp_path):
    write_report(Timeline("CPU", error="it broke"), tmp_path / f"r.{kind}")
    assert [path.name for path in tmp_path.iterdir()] == [f"r.{kind}"]


def test_other_endings_and_a_missing_library_are_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"must end in .html, .png, .json, got 'report.pdf'"):
        check_report_path("report.pdf")
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"fastvideo-lightning\[report\]"):
        check_report_path(tmp_path / "r.html")
    check_report_path(tmp_path / "new" / "r.json")
    assert (tmp_path / "new").is_dir()


def test_stalls_have_an_axis_of_their_own_in_per_cent_and_nothing_lies_over_them():
    figure = draw._draw(make_timeline())
    *_, link, stalls = figure.axes
    assert link.get_ylabel() == "copies to the GPU, GB/s"
    assert stalls.get_ylabel() == "stalled, % of the time"
    bars = stalls.containers[0]
    assert max(bar.get_height() for bar in bars) == pytest.approx(35)
    shades = [patch for patch in stalls.patches if patch not in bars.patches]
    assert len(shades) == 3
    assert max(shade.get_zorder() for shade in shades) < bars.patches[0].get_zorder()
