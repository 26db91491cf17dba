"""On a GPU, too: adapters, caches and quantized weights make what they make without offloading."""

import numpy as np
import pytest
import torch
from checkpoints import PROMPT, SIZE
from loras import write_lora
from references import SEED, load_plain

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.callbacks import LayerwiseOffload
from tests.callbacks.test_adapters import adapt, strip
from tests.gpu import requires_gpu
from tests.toys import OnFile, make_toy, sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
DTYPES = {"default": torch.bfloat16, "vae": torch.float32}
SAMPLING = {**SIZE, "guidance_scale": 3.0}
RESIDENT = {
    "dit_layerwise_offload": False,
    "vae_cpu_offload": False,
    "text_encoder_cpu_offload": False,
}
STREAMED = {"text_encoder_cpu_offload": False}


@pytest.mark.parametrize("memory", ["mapped", "pinned", "pageable"])
def test_adapters_come_and_go_between_runs(memory, tmp_path):
    plain = make_toy(4, width=512)
    toy = OnFile(plain, tmp_path / "toy.safetensors")
    plain.to(DEVICE)
    callback = LayerwiseOffload("blocks", host_memory=memory)
    callback.attach(toy, DEVICE)
    engine = callback.attachments[0].engine
    x = sample(512).to(DEVICE)
    reserved = engine.device_bytes
    for change in (adapt, strip, adapt, strip):
        change(toy)
        change(plain)
        plain.to(DEVICE)
        for _ in range(3):
            assert torch.equal(toy(x), plain(x))
        engine.check()
    assert engine.device_bytes == reserved
    assert memory == "pageable" or engine.store.pinned_bytes == engine.store.size_bytes
    callback.detach()


def frames_of(generator: VideoGenerator) -> np.ndarray:
    return generator.generate_video(PROMPT, save_video=False, seed=SEED, **SAMPLING).frames


@pytest.mark.parametrize("flags", [RESIDENT, STREAMED])
def test_a_lora_makes_the_frames_of_plain_diffusers(flags, checkpoint, tmp_path):
    folder = checkpoint("t2v")
    lora = write_lora(folder, tmp_path / "style", seed=11)
    pipeline = load_plain(folder, expects_image=False, dtype=DTYPES, device="cuda")
    expected = []
    for change in (
        lambda: None,
        lambda: pipeline.load_lora_weights(lora, adapter_name="style"),
        lambda: pipeline.set_adapters(["style"], [0.5]),
        lambda: pipeline.fuse_lora(components=["transformer"]),
        lambda: pipeline.unload_lora_weights(),
    ):
        change()
        output = pipeline(
            prompt=PROMPT,
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="pil",
            **SAMPLING,
        )
        expected.append(np.stack([np.asarray(frame) for frame in output.frames[0]]))
    with VideoGenerator.from_pretrained(folder, **flags) as generator:
        for i, change in enumerate(
            (
                lambda: None,
                lambda: generator.load_lora(lora),
                lambda: generator.set_loras({"style": 0.5}),
                lambda: generator.fuse_lora(),
                lambda: generator.unload_lora(),
            )
        ):
            change()
            assert np.array_equal(frames_of(generator), expected[i]), i


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_quantized_weights_stream_as_they_compute_resident(dtype, checkpoint):
    pytest.importorskip("torchao", reason="needs torchao")
    frames = []
    for flags in (RESIDENT, STREAMED):
        with VideoGenerator.from_pretrained(checkpoint("t2v"), dtype=dtype, **flags) as generator:
            frames += [frames_of(generator), frames_of(generator)]
    assert all(np.array_equal(frames[0], other) for other in frames[1:])


@pytest.mark.parametrize("cache", ["first_block", "taylorseer"])
def test_a_cache_makes_the_same_streamed_and_resident(cache, checkpoint):
    frames = []
    for flags in (RESIDENT, STREAMED):
        with VideoGenerator.from_pretrained(checkpoint("t2v"), cache=cache, **flags) as generator:
            frames += [frames_of(generator), frames_of(generator)]
    assert all(np.array_equal(frames[0], other) for other in frames[1:])
