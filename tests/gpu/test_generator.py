"""On a GPU, too, every Wan kind makes what plain diffusers makes there, bit for bit."""

import gc

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT
from support.references import CASES, SEED, kind_of, load_plain, make_plain_frames, sampling_of

from fastvideo_lightning import PromptDataset, VideoGenerator, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from tests.gpu import requires_gpu

pytestmark = [pytest.mark.gpu, requires_gpu]
DTYPES = {"default": torch.bfloat16, "vae": torch.float32}


@pytest.fixture
def sampling(request, image, last_image):
    return sampling_of(request.param, {"image": image, "last_image": last_image})


@pytest.mark.parametrize(
    ("case", "sampling"), [(case, case) for case in CASES], indirect=["sampling"]
)
@pytest.mark.parametrize("offloaded", [True, False])
def test_generator_equals_plain_diffusers_on_the_same_device(case, sampling, offloaded, checkpoint):
    folder = checkpoint(kind_of(case))
    expected = make_plain_frames(folder, sampling, dtype=DTYPES, device="cuda")
    flags = {
        "dit_layerwise_offload": offloaded,
        "vae_cpu_offload": offloaded,
        "image_encoder_cpu_offload": offloaded,
        "text_encoder_layerwise_offload": offloaded,
        "text_encoder_cpu_offload": False,
    }
    with VideoGenerator.from_pretrained(folder, **flags) as generator:
        for _ in range(2):
            video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)
            assert np.array_equal(video.frames, expected)
    assert video.peak_gpu_memory_gib > 0


@pytest.mark.parametrize("sampling", ["t2v"], indirect=True)
def test_an_encoder_on_the_cpu_equals_one_on_the_cpu(sampling, checkpoint):
    folder = checkpoint("t2v")
    pipeline = load_plain(folder, expects_image=False, dtype=DTYPES)
    with torch.no_grad():  # attention takes another kernel where a gradient may be wanted
        embeds, negative = pipeline.encode_prompt(
            PROMPT, max_sequence_length=sampling["max_sequence_length"]
        )
    pipeline.to("cuda")
    frames = pipeline(
        prompt_embeds=embeds.cuda(),
        negative_prompt_embeds=negative.cuda(),
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pil",
        **sampling,
    ).frames[0]
    with VideoGenerator.from_pretrained(folder) as generator:
        video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)
    assert np.array_equal(video.frames, np.stack([np.asarray(frame) for frame in frames]))


@pytest.mark.parametrize("sampling", ["t2v"], indirect=True)
def test_close_gives_back_all_device_memory(sampling, checkpoint):
    gc.collect()
    before = torch.cuda.memory_allocated()
    generator = VideoGenerator.from_pretrained(checkpoint("t2v"))
    generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)
    assert torch.cuda.memory_allocated() > before
    generator.close()
    del generator
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("sampling", ["t2v"], indirect=True)
def test_out_of_memory_names_the_stage_and_the_next_video_is_right(
    sampling, checkpoint, monkeypatch
):
    with VideoGenerator.from_pretrained(checkpoint("t2v")) as generator:
        expected = generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)

        def fail(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        block = generator.module.transformer.blocks[1]
        handle = block.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match=r"denoise stage"):
            generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)
        handle.remove()
        video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling)
    assert np.array_equal(video.frames, expected.frames)


@pytest.mark.parametrize("sampling", ["t2v"], indirect=True)
def test_callbacks_attached_directly_say_where_the_pipeline_computes(sampling, checkpoint):
    folder = checkpoint("t2v")
    module = VideoModule.from_pretrained(folder)
    callbacks = [LayerwiseOffload("transformer"), Resident("text_encoder"), ModelOffload("vae")]
    for callback in callbacks:
        callback.attach(module, "cuda")
    video = module.predict_step(PromptDataset([PROMPT], seed=SEED, **sampling)[0])
    expected = make_plain_frames(folder, sampling, dtype=DTYPES, device="cuda")
    assert np.array_equal(video.frames, expected)
    for callback in callbacks:
        callback.detach()
