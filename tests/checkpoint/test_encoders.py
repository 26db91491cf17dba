"""A text encoder in few bits is what transformers itself loads, streamed and on the CPU."""

from pathlib import Path

import pytest
import torch
from support import single_files
from support.checkpoints import SIZE
from support.references import check_frames, frames_of, load_plain
from torch import nn
from transformers import TorchAoConfig, UMT5Config, UMT5EncoderModel

from fastvideo_lightning import CheckpointError, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload

SAMPLING = {**SIZE, "guidance_scale": 3.0}
PLACEMENTS = {
    "streamed": lambda: LayerwiseOffload("text_encoder"),
    "cpu": lambda: CPUExecution("text_encoder"),
}


def load(folder: Path, place: Path, **how: object) -> VideoModule:
    return VideoModule.from_pretrained(
        folder, component={"text_encoder": place}, device_type="cpu", **how
    )


def write_gguf(folder: Path, path: Path, kind: str) -> Path:
    """Write a checkpoint's UMT5 encoder with llama.cpp's names."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    model = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    stored = model.state_dict()
    names = get_gguf_hf_weights_map(model, TensorProcessor())
    weights = {name: stored[own] for name, own in names.items()}
    return single_files.write_gguf(weights, path, kind, architecture="t5encoder", title="umt5")


def by_transformers(folder: Path, file: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    config = UMT5Config.from_pretrained(folder / "text_encoder")
    return UMT5EncoderModel.from_pretrained(
        file.parent, gguf_file=file.name, config=config, dtype=dtype
    ).eval()


def check_same(own: nn.Module, expected: nn.Module) -> None:
    weights, wanted = own.state_dict(), expected.state_dict()
    assert weights.keys() == wanted.keys()
    for name, tensor in weights.items():
        assert type(tensor.data) is type(wanted[name].data), name
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize(
    "kind", ["Q8_0", *(pytest.param(k, marks=pytest.mark.exhaustive) for k in ("Q4_0", "Q5_1"))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_gguf_encoder_is_what_transformers_reads(kind, dtype, checkpoint, tmp_path) -> None:
    folder = checkpoint("t2v")
    file = write_gguf(folder, tmp_path / "encoder.gguf", kind)
    module = load(folder, file, dtype=dtype)
    module.check_placement()
    expected = by_transformers(folder, file, dtype)
    check_same(module.get_submodule("text_encoder"), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_frames_of_a_gguf_encoder_are_those_of_transformers(
    placement, checkpoint, tmp_path
) -> None:
    folder = checkpoint("t2v")
    file = write_gguf(folder, tmp_path / "encoder.gguf", "Q8_0")
    plain = load_plain(folder, expects_image=False)
    plain.text_encoder = by_transformers(folder, file)
    expected = frames_of(plain, SAMPLING)
    check_frames(load(folder, file), [PLACEMENTS[placement]()], expected, SAMPLING)


def test_a_gguf_encoder_of_another_size_is_named(checkpoint, tmp_path) -> None:
    folder = checkpoint("t2v")
    config = UMT5Config.from_pretrained(folder / "text_encoder")
    config.d_ff = 2 * config.d_ff
    UMT5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
    file = write_gguf(tmp_path, tmp_path / "encoder.gguf", "Q8_0")
    with pytest.raises(CheckpointError, match=r"encoder\.gguf.*needs.*a text encoder in GGUF"):
        load(folder, file)


@pytest.fixture(params=["Float8WeightOnlyConfig", "Int8WeightOnlyConfig"])
def quantized(request, checkpoint, tmp_path) -> Path:
    """The folder of a checkpoint's encoder, saved quantized by torchao."""
    kinds = pytest.importorskip("torchao.quantization", reason="needs torchao")
    model = UMT5EncoderModel.from_pretrained(
        checkpoint("t2v") / "text_encoder",
        quantization_config=TorchAoConfig(getattr(kinds, request.param)()),
        dtype=torch.float32,
    )
    model.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_encoder_that_torchao_quantized_is_what_transformers_loads(
    placement, quantized, checkpoint
) -> None:
    folder = checkpoint("t2v")
    plain = load_plain(folder, expects_image=False)
    plain.text_encoder = UMT5EncoderModel.from_pretrained(quantized, dtype=torch.float32).eval()
    linear = plain.text_encoder.encoder.block[0].layer[0].SelfAttention.q
    assert "Tensor" in type(linear.weight.data).__name__
    module = load(folder, quantized)
    own = module.get_submodule("text_encoder.encoder.block.0.layer.0.SelfAttention.q")
    assert type(own.weight.data) is type(linear.weight.data)
    check_frames(module, [PLACEMENTS[placement]()], frames_of(plain, SAMPLING), SAMPLING)
