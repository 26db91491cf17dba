"""The page is ended while a video is made: who waits for it is told, and nobody waits for long."""

import io
import socket
import threading
import time

import httpx
import pytest
from rich.console import Console
from support.waiting import wait_until

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")

from fastvideo_lightning.callbacks import ProgressBar  # noqa: E402
from fastvideo_lightning.serve.form import FIELDS  # noqa: E402
from fastvideo_lightning.serve.server import serving  # noqa: E402
from fastvideo_lightning.serve.studio import Model, Studio  # noqa: E402

ASKED = {
    "prompt": "a red circle",
    "width": 96,
    "height": 96,
    "num_frames": 33,
    "num_inference_steps": 100,
    "seed": 1,
}


class Visitor:
    """Someone who asks for a long video and listens to what becomes of it."""

    def __init__(self, address: str) -> None:
        self.said = ""
        self._address = f"{address}gradio_api/queue/"
        (make,) = (
            found["id"]
            for found in httpx.get(f"{address}config").json()["dependencies"]
            if len(found["inputs"]) == len(FIELDS) and len(found["outputs"]) > 1
        )
        body = {"data": [ASKED.get(name) for name in FIELDS], "session_hash": "visitor"}
        httpx.post(f"{self._address}join", json={**body, "fn_index": make}).raise_for_status()
        self.listens = threading.Thread(target=self._listen, daemon=True)
        self.listens.start()

    def _listen(self) -> None:
        address = f"{self._address}data?session_hash=visitor"
        with httpx.stream("GET", address, timeout=60) as answer:
            for line in answer.iter_lines():
                self.said += line


def test_the_server_is_stopped_in_the_middle_of_a_video(tmp_path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={})
    studio = Studio(Model(accelerator="cpu"), output_path=tmp_path)
    studio._generator._callbacks.append(ProgressBar(console=console))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(studio, port=port) as address:
        visitor = Visitor(address)
        wait_until(lambda: "Denoising, step 2" in visitor.said)
        stopped_at = time.perf_counter()
    elapsed_s = time.perf_counter() - stopped_at
    visitor.listens.join(timeout=10)
    assert "The server was stopped before this video was done." in visitor.said
    assert "close_stream" in visitor.said, "the stream has its end, and is not broken off"
    assert elapsed_s < 4, "Gradio waits 5 s for a stream that stays open"
    drawn = console.file.getvalue()
    assert "video: stopped" in drawn
    assert "failed" not in drawn
    assert not list(tmp_path.iterdir())
