"""One model sharded over two GPUs with FSDP2.

On a laptop, in two processes on the CPU, with the small model that comes with the package:

    python examples/multi_gpu_fsdp.py

On two GPUs, with a model from the hub:

    python examples/multi_gpu_fsdp.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers "A majestic lion ..."

The script starts the other process itself. `torchrun --nproc-per-node=2` works as well.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy CPU; before torch is imported

import sys

import torch

from fastvideo_lightning import VideoGenerator


def main(
    model: str = "tiny-shapes", prompt: str = "a red circle moves right on a black background"
) -> None:
    """Shard `model` over two devices and make a video of `prompt`."""
    with VideoGenerator.from_pretrained(
        model,
        num_gpus=2,
        accelerator="auto" if torch.cuda.device_count() >= 2 else "cpu",
        # Recommended for several GPUs
        use_fsdp_inference=True,
        dit_layerwise_offload=False,
        dit_cpu_offload=False,
        # Where memory is short
        vae_cpu_offload=True,
        image_encoder_cpu_offload=True,
        text_encoder_cpu_offload=True,
        pin_cpu_memory=True,
    ) as generator:
        video = generator.generate_video(prompt, output_path="output/", save_video=True)
        if generator.is_first_process:  # every process runs this script
            print(f"{video.video_path}: {len(video.frames)} frames")


if __name__ == "__main__":
    main(*sys.argv[1:])
