"""The same video without VideoGenerator: Fabric, a module, callbacks and the predict loop.

On a laptop, with the small model that comes with the package:

    python examples/fabric_script.py

On a GPU, with a model from the hub:

    python examples/fabric_script.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers "A raccoon among sunflowers."
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


def main(model: str = "tiny-shapes", *prompts: str) -> None:
    """Load `model` and write a video of each prompt."""
    fabric = L.Fabric(
        accelerator="auto",
        devices=1,
        strategy=HostResidentStrategy(),
        callbacks=[
            LayerwiseOffload("transformer.blocks"),
            CPUExecution("text_encoder"),
            ModelOffload("vae"),
            VideoWriter("output/"),
            ProgressBar(),
        ],
    )
    fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(model))
    dataset = PromptDataset(prompts or ["a red circle moves right"])
    for video in PredictLoop(fabric).run(module, dataset, return_predictions=True) or []:
        print(f"{video.video_path}: {len(video.frames)} frames, seed {video.seed}")
    fabric.call("teardown")


if __name__ == "__main__":
    main(*sys.argv[1:])
