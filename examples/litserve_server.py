r"""Serve videos over HTTP with LitServe: a prompt in, an mp4 out.

    pip install litserve
    python examples/litserve_server.py                                       # tiny-shapes
    python examples/litserve_server.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers

Then, from another shell:

    curl -X POST localhost:8000/predict -H "Content-Type: application/json" \
        -d '{"prompt": "a red circle moves right", "seed": 7}' -o video.mp4

One worker holds the model and makes one video at a time. The weights stay in host memory, so the
GPU has room for what else runs there.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import sys
import tempfile
from pathlib import Path
from typing import Any

import litserve as ls
from fastapi import HTTPException, Response

from fastvideo_lightning import VideoGenerator


class VideoAPI(ls.LitAPI):
    """Makes one video of each request."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model

    def setup(self, device: str) -> None:
        """Load the model, once for each worker."""
        self.generator = VideoGenerator.from_pretrained(self.model)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the prompt and any sampling field; the generator checks them."""
        return request

    def predict(self, request: dict[str, Any]) -> bytes:
        """Make the video; what the caller passed wrongly is their error, not the server's."""
        prompt = request.pop("prompt", "")
        try:
            video = self.generator.generate_video(prompt, save_video=False, **request)
        except (TypeError, ValueError, FileNotFoundError) as error:
            raise HTTPException(status_code=422, detail=str(error)) from error
        with tempfile.TemporaryDirectory() as folder:
            return video.save(Path(folder) / "video.mp4").read_bytes()

    def encode_response(self, output: bytes) -> Response:
        """Answer with the file."""
        return Response(output, media_type="video/mp4")


def main(model: str = "tiny-shapes", port: str = "8000") -> None:
    """Serve `model` until stopped."""
    server = ls.LitServer(VideoAPI(model), accelerator="auto", devices=1, timeout=False)
    server.run(port=int(port), generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
