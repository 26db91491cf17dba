"""Generators whose device runs out of memory: a hook raises what its allocator would."""

import torch

from fastvideo_lightning import VideoGenerator
from support.checkpoints import PROMPT, SIZE

# All on the device: every stage has something to give up.
ALL_RESIDENT = {
    "dit_layerwise_offload": False,
    "text_encoder_cpu_offload": False,
    "vae_cpu_offload": False,
}


def make_generator(checkpoint, **flags):
    return VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu", **flags)


def make(generator, **options):
    return generator.generate_video(PROMPT, save_video=False, **{**SIZE, **options})


def run_out(generator, place, *, times):
    """Have a module raise as the device's allocator does, so many times."""
    left = [times]

    def fail(*_):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    return generator.module.get_submodule(place).register_forward_pre_hook(fail)


def run_out_in_second_video(generator):
    calls = [0]

    def fail(*_):
        calls[0] += 1
        if calls[0] == 5:  # two steps, two calls each
            raise torch.OutOfMemoryError("CUDA out of memory.")

    generator.module.transformer.register_forward_pre_hook(fail)
