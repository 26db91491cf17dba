import io
from pathlib import Path

import torch
from rich.console import Console

from fastvideo_lightning.callbacks.progress import show_loading
from fastvideo_lightning.checkpoint.weights import READ, StoredTensor, StoredWeight


def weight(path, offset, size):
    fp32 = torch.float32
    return StoredWeight(StoredTensor(Path(path), offset, torch.Size([size]), fp32), fp32, fp32)


def make_console(*, terminal=True):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={})


def test_the_bar_shows_what_was_read_of_what_there_is(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(4_000_000))
    sources = {"a": weight(path, 0, 500_000), "b": weight(path, 2_000_000, 500_000)}
    sources["tied to b"] = sources["b"]
    console = make_console()
    with show_loading(sources, READ.size, console=console):
        sources["b"].read_into(torch.empty(500_000))
    drawn = console.file.getvalue()
    assert "loading weights" in drawn
    assert "2.0/4.0 MB" in drawn


def test_nothing_is_drawn_without_a_terminal_or_anything_to_read():
    for console, sources in (
        (make_console(terminal=False), {"a": weight("x", 0, 8)}),
        (make_console(), {}),
    ):
        with show_loading(sources, READ.size, console=console):
            pass
        assert console.file.getvalue() == ""
