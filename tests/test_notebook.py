"""The notebook runs as it is, and is kept without what it printed."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"
nbformat = pytest.importorskip("nbformat", reason="needs nbclient: pip install '.[test]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install '.[test]'")
REFUSED = """
from fastvideo_lightning import VideoGenerator

try:
    VideoGenerator.from_pretrained(num_gpus=2, accelerator="cpu")
except ValueError as error:
    print(error)
"""


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [c for c in cells if c.cell_type == "code" and (c.outputs or c.execution_count)] == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_streams_shows_the_video_and_its_latents_and_refuses_processes(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(REFUSED))
    client = nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = [output.get("data", {}) for cell in code for output in cell.outputs]
    assert sum("data:video/mp4;base64," in str(each.get("text/html")) for each in shown) == 1
    assert sum("image/png" in each for each in shown) == 1
    memory = next(printed(cell) for cell in code if "blocks of" in printed(cell))
    assert "0 copies" not in memory
    assert printed(code[-1]).startswith("num_gpus=2 starts a process for each GPU")
