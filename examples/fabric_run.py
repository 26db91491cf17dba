"""A Fabric script whose processes `fabric run` starts: prompts are shared, blocks stream together.

On a laptop, in two processes on the CPU, with the small model that comes with the package:

    fabric run --accelerator=cpu --devices=2 examples/fabric_run.py

On two GPUs, with a model from the hub:

    fabric run --devices=2 examples/fabric_run.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers "..." "..."

`python examples/fabric_run.py` runs it on whatever there is.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import sys

import lightning as L

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import (
    CPUExecution,
    LayerwiseOffload,
    ModelOffload,
    ProgressBar,
    VideoWriter,
)

PROMPTS = ["a red circle moves right", "a blue square moves up", "a green triangle moves left"]


def main(model: str = "tiny-shapes", *prompts: str) -> None:
    """Load `model` and write a video of each prompt, every process its share."""
    # `fabric run` says which devices, and how many.
    fabric = L.Fabric(
        strategy=HostResidentStrategy(),
        callbacks=[
            LayerwiseOffload("transformer.blocks"),
            CPUExecution("text_encoder"),
            ModelOffload("vae"),
            VideoWriter("output/"),
            ProgressBar(),
        ],
    )
    if not os.environ.get("LT_CLI_USED"):  # `fabric run` has launched already
        fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(model))
    videos = PredictLoop(fabric).run(
        module, PromptDataset(prompts or PROMPTS), return_predictions=True
    )
    for video in videos or []:  # with its newline, for every process writes to the same terminal
        sys.stdout.write(f"rank {fabric.global_rank}: {video.video_path}\n")
    fabric.call("teardown")


if __name__ == "__main__":
    main(*sys.argv[1:])
