"""A denoiser from a GGUF file: streamed and plain make the same, from the bytes of the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import checkpoints
from support.checkpoints import SIZE
from support.references import check_frames, frames_of, load_plain

from fastvideo_lightning import VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident

gguf = pytest.importorskip("gguf", reason="needs gguf")

SAMPLING = {**SIZE, "guidance_scale": 3.0}
WIDTHS = {"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 64}
PLACEMENTS = {
    "pinned": lambda: LayerwiseOffload("transformer", host_memory="pinned"),
    "skippable": lambda: LayerwiseOffload("transformer", skippable=True),
    "model": lambda: ModelOffload("transformer"),
    "resident": lambda: Resident("transformer"),
    "cpu": lambda: CPUExecution("transformer"),
}


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def file(request, tmp_path_factory) -> Path:
    """A checkpoint's folder, with its transformer in a GGUF file too."""
    folder = tmp_path_factory.mktemp(request.param)
    model = checkpoints.transformer(seed=1, num_layers=4, **WIDTHS)
    checkpoints.save(checkpoints.text_pipeline(transformer=model), folder)
    kind = gguf.GGMLQuantizationType[request.param]
    writer = gguf.GGUFWriter(folder / "transformer.gguf", "wan")
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if "blocks" in name and values.ndim == 2:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "transformer.gguf"


def load(file: Path):
    from diffusers import GGUFQuantizationConfig, WanTransformer3DModel

    pipeline = load_plain(file.parent, expects_image=False)
    pipeline.transformer = WanTransformer3DModel.from_single_file(
        str(file),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        config=str(file.parent),
        subfolder="transformer",
        torch_dtype=torch.float32,
    )
    return pipeline


@pytest.fixture(scope="module")
def expected(file) -> np.ndarray:
    return frames_of(load(file), SAMPLING)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_frames_of_a_gguf_file_are_those_of_plain_diffusers_wherever_it_is(
    placement, file, expected
) -> None:
    module = VideoModule.from_pipeline(load(file))
    check_frames(module, [PLACEMENTS[placement]()], expected, SAMPLING)
    weight = module.get_submodule("transformer.blocks.0.attn1.to_q").weight
    assert type(weight).__name__ == "GGUFParameter"
    assert weight.dtype == torch.uint8


def test_a_block_moves_as_the_bytes_of_its_file(file) -> None:
    module = VideoModule.from_pipeline(load(file))
    streaming = LayerwiseOffload("transformer")
    (unit, *_) = streaming.attach(module, "cpu").engine.units
    kind = unit.module.attn1.to_q.weight.quant_type
    streaming.detach()
    block = checkpoints.transformer(seed=1, num_layers=1, **WIDTHS).blocks[0]
    in_fp32 = sum(weight.numel() * 4 for weight in block.parameters() if weight.dim() == 2)
    values, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    share = size_bytes / (4 * values)
    small = sum(-(-w.numel() * 4 // 512) * 512 for w in block.parameters() if w.dim() != 2)
    assert abs(unit.size_bytes - in_fp32 * share - small) < 0.05 * in_fp32


def test_adapters_go_around_the_bytes_and_are_not_added_to_them(file, tmp_path) -> None:
    pytest.importorskip("peft", reason="needs peft")
    from support.loras import write_lora

    around = write_lora(file.parent, tmp_path / "around", seed=3)
    apart = write_lora(file.parent, tmp_path / "apart", seed=4, targets=["proj_out"])
    plain, module = load(file), VideoModule.from_pipeline(load(file))
    for path in (around, apart):
        plain.load_lora_weights(path, adapter_name=path.name)
        module.load_lora(path)

    def check() -> None:
        expected = frames_of(plain, SAMPLING)
        check_frames(module, [LayerwiseOffload("transformer")], expected, SAMPLING)

    module.set_loras({"around": 0.7, "apart": 1.0})
    plain.set_adapters(["around", "apart"], [0.7, 1.0])
    check()
    with pytest.raises(ValueError, match=r"fuse_lora cannot add to transformer\.blocks.*GGUFParam"):
        module.fuse_lora()
    check()  # and nothing was fused
    module.set_loras({"apart": 1.0})
    plain.set_adapters(["apart"], [1.0])
    module.fuse_lora()
    plain.fuse_lora(components=["transformer"], adapter_names=["apart"])
    check()
