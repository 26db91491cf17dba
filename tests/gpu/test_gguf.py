"""On a GPU, too: a GGUF file makes what it makes in plain diffusers, and streams."""

import lightning as L
import numpy as np
import pytest
import torch
from checkpoints import PROMPT
from references import SEED

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from tests.gpu import requires_gpu
from tests.test_gguf import SAMPLING, file, load

__all__ = ["file"]
pytestmark = [pytest.mark.gpu, requires_gpu]


@pytest.mark.parametrize("placement", [LayerwiseOffload, ModelOffload, Resident])
def test_frames_of_a_gguf_file_are_those_of_plain_diffusers(placement, file):
    output = load(file).to("cuda")(
        prompt=PROMPT,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pil",
        **SAMPLING,
    )
    expected = np.stack([np.asarray(frame) for frame in output.frames[0]])
    callbacks = [placement("transformer"), Resident("text_encoder"), Resident("vae")]
    fabric = L.Fabric(
        accelerator="cuda", devices=1, strategy=HostResidentStrategy(), callbacks=callbacks
    )
    fabric.launch()
    module = VideoModule.from_pipeline(load(file))
    fabric.setup(module)
    for _ in range(2):
        prompts = PromptDataset([PROMPT], seed=SEED, **SAMPLING)
        (video,) = PredictLoop(fabric).run(module, prompts, return_predictions=True)
        assert np.array_equal(video.frames, expected)
    fabric.call("teardown")
