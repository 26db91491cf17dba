"""On a GPU, too: quantized weights make what they make in plain diffusers, and stream."""

import numpy as np
import pytest
import torch
from support.checkpoints import SIZE
from support.references import check_frames, frames_of, load_plain

from fastvideo_lightning import (
    VideoModule,
)
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload, Resident
from fastvideo_lightning.checkpoint.quantization import QUANTIZATIONS
from tests.gpu import requires_gpu

pytestmark = [pytest.mark.gpu, requires_gpu]
DTYPES = {"default": torch.bfloat16, "vae": torch.float32}
SAMPLING = {**SIZE, "guidance_scale": 3.0}
PLACEMENTS = {
    "streamed": lambda: LayerwiseOffload("transformer"),
    "skippable": lambda: LayerwiseOffload("transformer", skippable=True),
    "model": lambda: ModelOffload("transformer"),
    "resident": lambda: Resident("transformer"),
}


def load(folder, config, *, device: str = "cpu"):
    """Plain diffusers' pipeline with a quantized transformer."""
    from diffusers import WanTransformer3DModel

    pipeline = load_plain(folder, expects_image=False, dtype=DTYPES, device=device)
    pipeline.transformer = WanTransformer3DModel.from_pretrained(
        folder,
        subfolder="transformer",
        quantization_config=config,
        torch_dtype=torch.bfloat16,
    )
    return pipeline


def check(module: VideoModule, placement: str, expected: np.ndarray) -> None:
    """Compare two videos of a placed module with what is expected."""
    callbacks = [PLACEMENTS[placement](), Resident("text_encoder"), Resident("vae")]
    check_frames(module, callbacks, expected, SAMPLING, accelerator="cuda")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", QUANTIZATIONS)
def test_torchaos_weights_make_the_frames_of_plain_diffusers(dtype, placement, checkpoint):
    kinds = pytest.importorskip("torchao.quantization", reason="needs torchao")
    from diffusers import TorchAoConfig

    folder = checkpoint("t2v")
    config = TorchAoConfig(getattr(kinds, QUANTIZATIONS[dtype])())
    expected = frames_of(load(folder, config).to("cuda"), SAMPLING)
    check(VideoModule.from_pretrained(folder, dtype=dtype), placement, expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_4_bits_of_bitsandbytes_make_the_frames_of_plain_diffusers(placement, checkpoint):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    from diffusers import BitsAndBytesConfig

    folder = checkpoint("t2v")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    expected = frames_of(load(folder, config, device="cuda"), SAMPLING)
    check(VideoModule.from_pipeline(load(folder, config)), placement, expected)


def test_8_bits_of_bitsandbytes_are_refused_by_name(checkpoint):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    from diffusers import BitsAndBytesConfig

    module = VideoModule.from_pipeline(
        load(checkpoint("t2v"), BitsAndBytesConfig(load_in_8bit=True))
    )
    with pytest.raises(TypeError, match=r"weight is a Int8Params"):
        LayerwiseOffload("transformer").attach(module, "cuda")
