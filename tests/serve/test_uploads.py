"""What visitors upload goes with the page, also where nobody could remove it."""

import subprocess
import sys

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")

from fastvideo_lightning.serve.server import upload_folder  # noqa: E402

KILLED = """
import os, pathlib, signal, sys
from fastvideo_lightning.serve.server import upload_folder
with upload_folder(pathlib.Path(sys.argv[1])) as folder:
    pathlib.Path(folder, "image.png").write_text("an image")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_page_left_goes_with_the_next_and_a_running_ones_stays(tmp_path):
    (tmp_path / ".page-of-somebody").write_text("no folder")
    with upload_folder(tmp_path) as running:
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=100)
        (left,) = {str(path) for path in tmp_path.glob(".page-*/")} - {running}
        with upload_folder(tmp_path) as folder:
            there = {str(path) for path in tmp_path.glob(".page-*/")}
            assert left not in there
            assert there == {running, folder}
    assert [path.name for path in tmp_path.iterdir()] == [".page-of-somebody"]
