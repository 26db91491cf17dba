"""Make one video with VideoGenerator.

On a laptop, with the small model that comes with the package:

    python examples/generate.py

On a GPU, with a model from the hub:

    python examples/generate.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers "A raccoon among sunflowers."
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import sys

from fastvideo_lightning import VideoGenerator


def main(model: str = "tiny-shapes", prompt: str = "a red circle moves right") -> None:
    """Load `model`, make a video of `prompt` and say where it is."""
    # The flags have these values by themselves; they stand here to be turned.
    with VideoGenerator.from_pretrained(
        model,
        num_gpus=1,
        dit_layerwise_offload=True,
        text_encoder_cpu_offload=True,
        vae_cpu_offload=True,
        pin_cpu_memory=True,
    ) as generator:
        video = generator.generate_video(prompt, output_path="output/", save_video=True)
    frames, height, width, _ = video.frames.shape
    print(f"{video.video_path}: {frames} frames of {width}x{height}, {video.fps} per second")


if __name__ == "__main__":
    main(*sys.argv[1:])
