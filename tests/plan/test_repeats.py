"""Calls that are repeated in the allocator leave it as if they had been computed."""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from fastvideo_lightning import VideoModule
from fastvideo_lightning.plan.memory_trace import Repeats, noting
from fastvideo_lightning.plan.sizes import arguments_of, measure_components
from fastvideo_lightning.plan.vae_cost import Autoencoder, count_vae

SMALL = {"base_dim": 16, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


def count(*, encodes, tiled, repeats):
    """Allocations, and how many calls of encoder and decoder were computed."""
    with torch.device("meta"):
        vae = AutoencoderKLWan(**SMALL).eval()
    if tiled:
        vae.enable_tiling()
    shape = (1, 3, 33, 320, 480) if encodes else (1, 4, 9, 40, 60)
    computed = []

    def counted(forward):
        def call(*args, **kwargs):
            computed.append(forward)
            return forward(*args, **kwargs)

        return call

    given = torch.empty(shape, device="meta")
    with noting([*vae.parameters(), *vae.buffers(), given]) as notes:
        for part in (vae.encoder, vae.decoder):
            part.forward = counted(part.forward)
            if repeats:
                part.forward = Repeats(notes, part.forward)
        (vae.encode if encodes else vae.decode)(given, return_dict=False)
    return notes.allocations, len(computed)


@pytest.mark.parametrize("encodes", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_repeating_counts_what_computing_does(encodes, tiled):
    computed, num_computed = count(encodes=encodes, tiled=tiled, repeats=False)
    repeated, num_repeated = count(encodes=encodes, tiled=tiled, repeats=True)
    assert repeated == computed
    # Four kinds of tiles, those at the right and the lower edge being smaller, of three calls each:
    # two may find nothing kept from before, or one frame.
    assert num_repeated <= (12 if tiled else 3) < num_computed


def test_what_a_video_needs_grows_with_it_and_is_less_in_tiles():
    arguments = json.dumps(arguments_of(AutoencoderKLWan(**SMALL), AutoencoderKLWan))

    def held(height, frames, **how):
        how = {"encodes": False, "tiled": False, "dtype": torch.float32} | how
        return count_vae(arguments, (frames, height, 480), **how).reserved_bytes

    assert held(320, 33, tiled=True) < held(320, 33) < held(640, 33)
    assert held(320, 33, dtype=torch.bfloat16) < held(320, 33)
    assert held(320, 33, encodes=True) != held(320, 33)


def test_a_configuration_that_holds_more_than_its_class_asks_for_is_counted_without_it():
    vae = AutoencoderKLWan(**SMALL)
    arguments = arguments_of(vae, AutoencoderKLWan)
    vae.register_to_config(clip_output=False)  # as Wan2.2-TI2V-5B is published
    assert arguments_of(vae, AutoencoderKLWan) == arguments


def test_the_calls_of_another_class_are_not_known():
    class Other(torch.nn.Linear):
        config = {}

    pipeline = WanPipeline(None, None, AutoencoderKLWan(**SMALL), UniPCMultistepScheduler(), None)
    module = VideoModule.from_pipeline(pipeline)
    (size,) = measure_components(module)
    assert Autoencoder.of(module, size).arguments is not None
    module.vae = Other(1, 1)
    assert Autoencoder.of(module, size).arguments is None
