"""On a GPU, too: adapters that come and go make what they make in plain diffusers."""

import lightning as L
import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.loras import write_lora
from support.references import SEED, frames_of, load_plain

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from tests.callbacks.test_adapters import adapt, strip
from tests.gpu import requires_gpu
from tests.modules.test_lora import STEPS
from tests.support.toys import OnFile, make_toy, sample

pytestmark = [pytest.mark.gpu, requires_gpu]
DEVICE = torch.device("cuda", 0)
SAMPLING = {**SIZE, "guidance_scale": 3.0}
DTYPES = {"auto": {"default": torch.bfloat16, "vae": torch.float32}, "fp32": torch.float32}
# With each placement: the run's dtype, and what lies on the host, where adapters are fused then.
PLACEMENTS = {
    "mapped": (lambda: LayerwiseOffload("transformer", host_memory="mapped"), "fp32", "blocks"),
    "pinned": (lambda: LayerwiseOffload("transformer", host_memory="pinned"), "auto", "blocks"),
    "skippable": (lambda: LayerwiseOffload("transformer", skippable=True), "auto", "blocks"),
    "model": (lambda: ModelOffload("transformer"), "auto", ""),
    "resident": (lambda: Resident("transformer"), "auto", None),
}


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


def plain_frames(folder, loras, dtype, on_host) -> dict[str, np.ndarray]:
    """What plain diffusers makes after each step, which is taken with that part on the host."""
    pipeline = load_plain(folder, expects_image=False, dtype=DTYPES[dtype], device="cuda")
    frames = {}
    for step, (_, change) in STEPS.items():
        if on_host is not None:
            pipeline.transformer.get_submodule(on_host).to("cpu")
        change(pipeline, *loras)
        pipeline.transformer.to("cuda")
        frames[step] = frames_of(pipeline, SAMPLING)
    return frames


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_loras_make_the_frames_of_plain_diffusers_in_every_state(placement, checkpoint, tmp_path):
    folder = checkpoint("t2v")
    loras = (
        write_lora(folder, tmp_path / "first", seed=11),
        write_lora(folder, tmp_path / "second", seed=12, rank=2, targets=["to_k", "to_q"]),
    )
    make, dtype, on_host = PLACEMENTS[placement]
    expected = plain_frames(folder, loras, dtype, on_host)
    callback = make()
    fabric = L.Fabric(
        accelerator="cuda",
        devices=1,
        strategy=HostResidentStrategy(),
        callbacks=[callback, Resident("text_encoder"), Resident("vae")],
    )
    fabric.launch()
    module = VideoModule.from_pretrained(folder, dtype=dtype)
    fabric.setup(module)
    prompts = PromptDataset([PROMPT], seed=SEED, **SAMPLING)
    for step, (change, _) in STEPS.items():
        change(module, *loras)
        (video,) = PredictLoop(fabric).run(module, prompts, return_predictions=True)
        assert np.array_equal(video.frames, expected[step]), step
        if callback.attachments[0].engine is not None:
            callback.attachments[0].engine.check()
    fabric.call("teardown")
