"""A callback of one's own: where the time of each video went, as one line of JSON.

On a laptop, with the small model that comes with the package:

    python examples/custom_callback.py

On a GPU, with a model from the hub:

    python examples/custom_callback.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import json
import sys
import time
from pathlib import Path

import lightning as L
import torch

from fastvideo_lightning import GeneratedVideo, VideoGenerator


class StageTimes:
    """Appends to a file how long encoding, each denoising step and decoding took.

    A callback is any object with methods named after moments. Each takes by name what it needs
    and leaves out the rest.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last: dict[str, object] = {}
        self._marks_s: list[float] = []

    def on_predict_batch_start(self, fabric: L.Fabric) -> None:
        """A prompt is taken up."""
        self._marks_s = [_now_s(fabric)]

    def on_denoise_step_start(self, fabric: L.Fabric, step: int) -> None:
        """The first step ends the encoding."""
        if step == 0:
            self._marks_s.append(_now_s(fabric))

    def on_denoise_step_end(self, fabric: L.Fabric) -> None:
        """One step is done."""
        self._marks_s.append(_now_s(fabric))

    def on_predict_batch_end(self, fabric: L.Fabric, outputs: GeneratedVideo) -> None:
        """The frames are there."""
        marks = [*self._marks_s, _now_s(fabric)]
        encode_s, *steps_s, decode_s = (
            round(later - earlier, 4) for earlier, later in zip(marks, marks[1:], strict=False)
        )
        self.last = {
            "prompt": outputs.prompt,
            "seed": outputs.seed,
            "encode_s": encode_s,
            "steps_s": steps_s,
            "decode_s": decode_s,
        }
        with self.path.open("a", encoding="utf-8") as file:
            print(json.dumps(self.last), file=file)


def _now_s(fabric: L.Fabric) -> float:
    # A GPU works behind the program's back: wait for it, or the times are those of asking.
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    return time.perf_counter()


def main(model: str = "tiny-shapes") -> None:
    """Make two videos and print where each is and what the callback wrote of it."""
    times = StageTimes("stage_times.jsonl")
    prompts = {"a red circle moves right": 1024, "a blue square moves up on a white background": 7}
    with VideoGenerator.from_pretrained(model, callbacks=[times]) as generator:
        for prompt, seed in prompts.items():
            video = generator.generate_video(prompt, seed=seed)
            print(f"{video.video_path}: {json.dumps(times.last)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
