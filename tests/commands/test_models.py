"""The table of pipelines: shares, what is left out, and the page that shows it."""

from pathlib import Path

import pytest

from fastvideo_lightning.cli import run
from fastvideo_lightning.inventory import HEADER, Entry, as_cells, as_markdown, list_entries
from fastvideo_lightning.modules.catalog import UNUSABLE, find_video_pipelines

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
