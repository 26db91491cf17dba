"""One timeline on a GPU: what changes hands while kernels run stays right, and is there in time."""

import lightning as L
import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, text_pipeline, transformer
from torch._inductor.utils import fresh_cache

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from fastvideo_lightning.modules.acceleration import compile_blocks
from tests.gpu import requires_gpu
from tests.gpu.test_streaming import DEVICE, PoisoningStream, SleepingStream

pytestmark = [pytest.mark.gpu, requires_gpu]
BLOCKS = 6


def two_experts() -> VideoModule:
    experts = {
        name: transformer(seed=seed, num_layers=BLOCKS).to(torch.bfloat16)
        for seed, name in enumerate(("transformer", "transformer_2"))
    }
    pipeline = text_pipeline(**experts, boundary_ratio=0.9)
    pipeline.text_encoder.to(torch.bfloat16)
    return VideoModule.from_pipeline(pipeline)


def make_frames(callbacks: list[object], *, transport=None, videos: int = 2) -> list[np.ndarray]:
    module = two_experts()
    fabric = L.Fabric(
        accelerator="cuda", devices=1, strategy=HostResidentStrategy(), callbacks=callbacks
    )
    fabric.launch()
    fabric.setup(module)
    if transport is not None:
        engine = callbacks[1].attachments[0].engine
        engine.drain()
        engine.transport = transport(DEVICE)
    prompts = PromptDataset(
        [PROMPT] * videos, seed=3, num_inference_steps=6, height=16, width=16, num_frames=5
    )
    made = PredictLoop(fabric).run(module, prompts, return_predictions=True)
    fabric.call("teardown")
    return [video.frames for video in made]


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    names = ("text_encoder", "transformer", "transformer_2", "vae")
    return make_frames([Resident(name) for name in names])


@pytest.mark.parametrize("transport", [None, PoisoningStream, SleepingStream])
@pytest.mark.parametrize("resident_blocks", [0, 2, 6])
def test_experts_hand_over_and_the_decoder_comes_in_without_a_race(
    expected, transport, resident_blocks
):
    options = {"resident_blocks": resident_blocks, "share_residents": True}
    callbacks = [
        LayerwiseOffload("text_encoder"),
        LayerwiseOffload("transformer", **options),
        LayerwiseOffload("transformer_2", **options),
        ModelOffload("vae"),
    ]
    for frames, plain in zip(make_frames(callbacks, transport=transport), expected, strict=True):
        assert np.array_equal(frames, plain)


def test_compiled_blocks_stream_as_they_compute_resident():
    torch._dynamo.reset()
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8, device=DEVICE, dtype=torch.bfloat16),
        "timestep": torch.tensor([500], device=DEVICE),
        "encoder_hidden_states": torch.randn(1, 8, 16, device=DEVICE, dtype=torch.bfloat16),
    }
    plain = transformer(seed=0, num_layers=BLOCKS).to(DEVICE, torch.bfloat16)
    streamed = transformer(seed=0, num_layers=BLOCKS).to(torch.bfloat16)
    compile_blocks(plain, "")
    compile_blocks(streamed, "")
    callback = LayerwiseOffload("")
    callback.attach(streamed, DEVICE)
    with torch.no_grad():
        expected = plain(**inputs).sample
        assert torch.equal(streamed(**inputs).sample, expected)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for _ in range(3):
            assert torch.equal(streamed(**inputs).sample, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_bits_of_compiled_blocks_do_not_depend_on_what_was_compiled_before():
    widths = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    model = transformer(seed=0, num_layers=1, rope_max_seq_len=64, **widths)
    model.to(DEVICE, torch.bfloat16)
    compile_blocks(model, "")

    def compute(latent_frames: int) -> torch.Tensor:
        torch.manual_seed(latent_frames)
        inputs = {
            "hidden_states": torch.randn(1, 4, latent_frames, 60, 104),
            "encoder_hidden_states": torch.randn(1, 512, 16),
        }
        on_device = {name: value.to(DEVICE, torch.bfloat16) for name, value in inputs.items()}
        with torch.no_grad():
            return model(timestep=torch.tensor([500], device=DEVICE), **on_device).sample

    outputs = []
    for before in ((), (1,), (3,)):
        torch._dynamo.reset()
        with fresh_cache():
            for latent_frames in before:
                compute(latent_frames)
            outputs.append(compute(5))
    assert all(torch.equal(output, outputs[0]) for output in outputs)
