"""The plot of a result has room for what it shows."""

import matplotlib.pyplot as plt
import pytest

from benchmarks.harness import MODES
from benchmarks.report import draw


def make_facts(modes, counts):
    def make_row(frames, number, mode):
        times = {"step_ms": 100.0 * frames + number, "beside_ms": 100.0 * frames}
        sizes = {"reserved_gb": 1.0 + number, "streamed_bytes": 28 * 10**9}
        return {"mode": mode, "frames": frames, **times, **sizes}

    rows = [make_row(frames, *pair) for frames in counts for pair in enumerate(modes)]
    names = {"model": "wan-14b", "size": "480x832", "device": "a card"}
    return {**names, "block_bytes": 28 * 10**9, "link_bytes_per_s": 55e9, "rows": rows}


@pytest.mark.parametrize("counts", [(1,), (1, 17, 81)], ids=len)
@pytest.mark.parametrize("num_modes", [2, 12, len(MODES)])
def test_the_legend_covers_no_panel_and_lies_within_the_picture(
    num_modes, counts, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    modes = sorted(MODES, key=len)[-num_modes:]  # those with the longest names
    draw(make_facts(modes, counts), tmp_path / "plot.png")
    monkeypatch.undo()
    (figure,) = drawn
    legend = figure.legends[0].get_window_extent()
    for axis in figure.axes:
        assert legend.y1 <= axis.get_tightbbox().y0
        assert axis.get_window_extent().height > 2.5 * figure.dpi
    assert legend.y0 >= 0
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    plt.close(figure)
