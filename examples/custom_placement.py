"""A placement of one's own: the text encoder computes on a device of its own.

On a laptop, with the small model that comes with the package:

    python examples/custom_placement.py

On a machine with two GPUs the encoder takes the second one, and never leaves it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import sys

import lightning as L
import torch
from torch import nn

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import (
    Attachment,
    LayerwiseOffload,
    ModelOffload,
    Placement,
    VideoWriter,
)


class OnDevice(Placement):
    """Computes a component on a device of its own, such as a second GPU."""

    def __init__(self, target: str, device: str) -> None:
        super().__init__(target)
        self.device = torch.device(device)

    def place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        """Keep the weights there; inputs are brought there, and results back."""
        attachment.stay(self.device, run_device=device, results_to=device)


def main(model: str = "tiny-shapes", *prompts: str) -> None:
    """Load `model` and write a video of each prompt."""
    encoder = OnDevice("text_encoder", "cuda:1" if torch.cuda.device_count() > 1 else "cpu")
    writer = VideoWriter("output/")
    callbacks = [LayerwiseOffload("transformer"), encoder, ModelOffload("vae"), writer]
    fabric = L.Fabric(devices=1, strategy=HostResidentStrategy(), callbacks=callbacks)
    fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(model))
    dataset = PromptDataset(prompts or ["a red circle moves right"])
    for video in PredictLoop(fabric).run(module, dataset, return_predictions=True) or []:
        print(video.video_path)
    fabric.call("teardown")


if __name__ == "__main__":
    main(*sys.argv[1:])
