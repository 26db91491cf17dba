"""A trace is read as what overlaps in it, and drawn."""

import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks.trace import Span, join, main, read_timeline


@pytest.fixture
def trace(tmp_path):
    """Two copies of 100 us, the first wholly under kernels and the second half so."""

    def event(category, name, start, end, **arguments):
        times = {"ph": "X", "ts": start, "dur": end - start}
        return times | {"cat": category, "name": name, "args": arguments}

    events = [
        event("kernel", "gemm", 0, 60),
        event("kernel", "gemm", 60, 250),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 100, 200, bytes=10**8),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 200, 300, bytes=10**8),
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 10, 11, bytes=8),
        event("gpu_memcpy", "Memcpy DtoD", 10, 20, bytes=10**8),
        event("cpu_op", "aten::mm", 0, 5),
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_the_share_of_copying_under_computing_is_read_off_a_trace(trace):
    timeline = read_timeline(trace)
    assert timeline.copies == [Span(100, 200), Span(200, 300)]
    assert timeline.hidden_share == pytest.approx(0.75)


def test_near_spans_are_drawn_as_one():
    spans = [Span(0, 1), Span(3, 4), Span(1.5, 2)]
    assert join(spans, gap_us=0.5) == [Span(0, 2), Span(3, 4)]


def test_a_trace_is_drawn(trace, tmp_path):
    picture = tmp_path / "trace.png"
    options = ["--trace", str(trace), "--output", str(picture)]
    outcome = CliRunner().invoke(main, options, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "75.0%" in outcome.output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_it_says_that_it_needs_one(tmp_path):
    options = ["--model", "wan-tiny", "--frames", "1", "--size", "32x32", "--folder", str(tmp_path)]
    outcome = CliRunner().invoke(main, options)
    assert outcome.exit_code == 1
    assert "needs a GPU" in outcome.output
