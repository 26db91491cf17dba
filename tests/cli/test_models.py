"""The table of pipelines: shares, what is left out, and the page that shows it."""

import re
import sys
from pathlib import Path

import pytest

from fastvideo_lightning.cli.app import run
from fastvideo_lightning.modules.catalog import UNUSABLE, find_video_pipelines
from fastvideo_lightning.modules.inventory import (
    HEADER,
    Entry,
    as_cells,
    as_lines,
    as_markdown,
    list_entries,
)

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# They upsample or decode what another pipeline has denoised.
WITHOUT_DENOISER = {
    "LTXLatentUpsamplePipeline",
    "LTX2LatentUpsamplePipeline",
    "LTX2VideoDiffusionDecodePipeline",
}


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return list_entries()


def test_every_video_pipeline_has_a_row(entries: list[Entry]) -> None:
    assert {entry.name for entry in entries} == set(find_video_pipelines())
    assert {entry.name: entry.reason for entry in entries if entry.reason} == UNUSABLE


def test_of_every_denoiser_at_least_95_percent_stream(entries: list[Entry]) -> None:
    shares = {
        f"{entry.name}.{component}": share
        for entry in entries
        for component, share in entry.shares.items()
    }
    assert {name: share for name, share in shares.items() if share < 0.95} == {}
    assert {entry.name for entry in entries if not entry.shares} == WITHOUT_DENOISER


def test_the_page_shows_the_table_of_the_installed_diffusers(entries: list[Entry]) -> None:
    assert PAGE.read_text().endswith(as_markdown(entries)), (
        "docs/models.md is out of date: replace its table by what "
        "`fastvideo-lightning models --markdown` prints"
    )


def test_through_a_pipe_each_pipeline_is_a_line_of_cells_between_tabs(
    capsys: pytest.CaptureFixture[str], entries: list[Entry]
) -> None:
    assert run(["models"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [list(HEADER), *(list(as_cells(entry)) for entry in entries)]
    assert not any(cell != cell.strip() for line in lines for cell in line), "padded"


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_no_word_is_broken_and_a_pipeline_has_few_lines(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    entries: list[Entry],
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with monkeypatch.context() as patched:
        patched.setattr(type(sys.stdout), "isatty", lambda stream: True)
        assert run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    words = {word for entry in entries for cell in as_cells(entry) for word in cell.split()}
    assert words <= set(re.sub("[()]", "", " ".join(lines)).split())
    named = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in named] == [HEADER[0], *(entry.name for entry in entries)]
    assert len(lines) < 2.5 * len(named)


def test_on_a_terminal_an_empty_cell_is_seen(entries: list[Entry]) -> None:
    lines = as_lines([entry for entry in entries if entry.name == "WanPipeline"], 80)
    assert lines[-2:] == [
        "WanPipeline (family)",
        "  transformer: 98.4%, transformer_2: 98.4% | text_encoder | - | vae",
    ]
