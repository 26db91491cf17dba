"""On a GPU, too: a GGUF file makes what it makes in plain diffusers, and streams."""

import pytest
from support.references import check_frames, frames_of

from fastvideo_lightning import VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from tests.checkpoint.test_gguf import SAMPLING, file, load
from tests.gpu import requires_gpu

__all__ = ["file"]
pytestmark = [pytest.mark.gpu, requires_gpu]


@pytest.mark.parametrize("placement", [LayerwiseOffload, ModelOffload, Resident])
def test_frames_of_a_gguf_file_are_those_of_plain_diffusers(placement, file):
    expected = frames_of(load(file).to("cuda"), SAMPLING)
    callbacks = [placement("transformer"), Resident("text_encoder"), Resident("vae")]
    module = VideoModule.from_pipeline(load(file))
    check_frames(module, callbacks, expected, SAMPLING, accelerator="cuda")
