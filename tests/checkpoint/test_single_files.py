"""A file of weights beside a pipeline's folder loads as diffusers itself loads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
from support import checkpoints, single_files
from support.checkpoints import SIZE
from support.references import check_frames, frames_of, load_plain
from torch import nn

from fastvideo_lightning import CheckpointError, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload

FindCheckpoint = Callable[[str], Path]
SAMPLING = {**SIZE, "guidance_scale": 3.0}
WIDE = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 256}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A checkpoint whose denoiser is wide enough for blocks of 256 numbers."""
    folder = tmp_path_factory.mktemp("wide")
    model = checkpoints.transformer(seed=1, **WIDE)
    checkpoints.save(checkpoints.text_pipeline(transformer=model), folder)
    return folder


def load_single(file: Path, base: Path, **loading: Any) -> WanTransformer3DModel:
    """Load a denoiser with diffusers alone."""
    loading = {"torch_dtype": torch.float32, **loading}
    return WanTransformer3DModel.from_single_file(
        str(file), config=str(base), subfolder="transformer", **loading
    )


def load(file: Path, base: Path, **loading: Any) -> VideoModule:
    return VideoModule.from_pretrained(file, base=base, device_type="cpu", **loading)


def check_same(module: VideoModule, expected: nn.Module, component: str = "transformer") -> None:
    """Compare every weight, bit for bit, in its class and dtype."""
    module.check_placement()
    own = dict(module.get_submodule(component).named_parameters())
    for name, weight in expected.named_parameters():
        assert type(own[name]) is type(weight), name
        assert own[name].dtype == weight.dtype, name
        assert torch.equal(own[name].data, weight.data), name
        assert getattr(own[name], "quant_type", None) == getattr(weight, "quant_type", None), name
    assert own.keys() == dict(expected.named_parameters()).keys()


def files_of(module: VideoModule, component: str = "transformer") -> set[Path | None]:
    """Return the files that a component's weights stream from; None for what lies in none."""
    sources = module.weight_sources
    names = [f"{component}.{n}" for n in module.get_submodule(component).state_dict()]
    return {sources[name].path if name in sources else None for name in names}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_with_original_names_streams_from_where_it_lies(prefix, checkpoint, tmp_path):
    base = checkpoint("t2v")
    file = single_files.write_wan(base, tmp_path / "wan.safetensors", prefix=prefix)
    plain = load_plain(base, expects_image=False)
    plain.transformer = load_single(file, base)
    module = load(file, base)
    assert files_of(module) == {file}
    streaming = LayerwiseOffload("transformer", host_memory="mapped")
    check_frames(module, [streaming], frames_of(plain, SAMPLING), SAMPLING)


@pytest.mark.parametrize("kind", single_files.GGUF_KINDS)
def test_every_type_of_gguf_that_diffusers_computes_is_what_it_loads(kind, wide, tmp_path):
    weights = single_files.read_wan(wide)
    file = single_files.write_gguf(weights, tmp_path / f"{kind}.gguf", kind)
    quantization = GGUFQuantizationConfig(compute_dtype=torch.float32)
    module = load(file, wide)
    assert files_of(module) == {file}
    check_same(module, load_single(file, wide, quantization_config=quantization))


@pytest.mark.parametrize(
    "placement",
    [
        lambda: LayerwiseOffload("transformer", host_memory="mapped"),
        lambda: LayerwiseOffload("transformer", host_memory="courier"),
        lambda: ModelOffload("transformer"),
    ],
    ids=["mapped", "courier", "model"],
)
def test_a_gguf_file_is_streamed_as_its_bytes(placement, wide, tmp_path):
    weights = single_files.read_wan(wide)
    file = single_files.write_gguf(weights, tmp_path / "wan.gguf", "Q4_K")
    plain = load_plain(wide, expects_image=False)
    quantization = GGUFQuantizationConfig(compute_dtype=torch.float32)
    plain.transformer = load_single(file, wide, quantization_config=quantization)
    check_frames(load(file, wide), [placement()], frames_of(plain, SAMPLING), SAMPLING)


def scaled(weights: dict[str, torch.Tensor], names: tuple[str, str], *, by_row: bool) -> Any:
    """Return fp8 weights with their scales, and the products, by name."""
    stored, products = {}, {}
    for name, tensor in weights.items():
        if tensor.dim() != 2 or "blocks" not in name:
            stored[name] = products[name] = tensor
            continue
        scale = tensor.abs().amax(1) / 400 if by_row else tensor.abs().max() / 400
        scale = scale.reshape(-1, 1) if by_row else scale
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        products[name] = stored[name].float() * scale
        stored[name.removesuffix("weight") + names[0]] = scale
        stored[name.removesuffix("weight") + names[1]] = torch.ones(())
    return stored, products


@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "by row"])
@pytest.mark.parametrize(
    "names", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")]
)
def test_fp8_with_scales_is_the_weight_times_its_scale(names, by_row, wide, tmp_path):
    stored, products = scaled(single_files.read_wan(wide), names, by_row=by_row)
    stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    file = single_files.write(stored, tmp_path / "scaled.safetensors")
    expected = single_files.write(products, tmp_path / "products.safetensors")
    check_same(load(file, wide), load_single(expected, wide))


def test_fp8_with_scales_makes_the_same_streamed_and_whole(wide, tmp_path):
    stored, _ = scaled(single_files.read_wan(wide), ("scale_weight", "scale_input"), by_row=True)
    file = single_files.write(stored, tmp_path / "scaled.safetensors")
    whole = load(file, wide)
    whole.check_placement()
    plain = load_plain(wide, expects_image=False)
    plain.transformer = whole.pipeline.transformer
    expected = frames_of(plain, SAMPLING)
    check_frames(load(file, wide), [LayerwiseOffload("transformer")], expected, SAMPLING)


def test_scales_are_multiplied_in_the_dtype_of_the_run(wide, tmp_path):
    stored, _ = scaled(single_files.read_wan(wide), ("scale_weight", "scale_input"), by_row=True)
    file = single_files.write(stored, tmp_path / "scaled.safetensors")
    module = load(file, wide, dtype="bf16")
    module.check_placement()
    name = "blocks.0.self_attn.q."
    expected = stored[f"{name}weight"].bfloat16() * stored[f"{name}scale_weight"].bfloat16()
    own = module.get_submodule("transformer.blocks.0.attn1.to_q").weight
    assert torch.equal(own, expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_a_narrow_file_without_scales_is_widened(dtype, wide, tmp_path):
    file = single_files.write_wan(wide, tmp_path / "narrow.safetensors", dtype=dtype)
    check_same(load(file, wide), load_single(file, wide))


def note(kind: str) -> torch.Tensor:
    return torch.tensor(list(f'{{"format": "{kind}"}}'.encode()), dtype=torch.uint8)


REFUSED = {
    "nvfp4": ({"blocks.0.q.weight_scale_2": torch.ones(())}, "nvfp4 weights"),
    "nvfp4 by its note": ({"blocks.0.q.comfy_quant": note("nvfp4")}, "nvfp4 weights"),
    "int8 by its note": ({"blocks.0.q.comfy_quant": note("int8_convrot")}, "int8_convrot weights"),
    "int8": ({"blocks.0.q.weight": torch.ones(2, 2, dtype=torch.int8)}, "int8 weights"),
    "svdquant": ({"blocks.0.qkv.smooth_factor": torch.ones(2)}, "svdquant weights"),
    "gptq": ({"blocks.0.q.qzeros": torch.ones(2)}, "GPTQ or AWQ weights"),
    "bitsandbytes": ({"blocks.0.q.weight.absmax": torch.ones(2)}, "bitsandbytes weights"),
    "mxfp8": (
        {
            "blocks.0.q.weight": torch.ones(4, 64).to(torch.float8_e4m3fn),
            "blocks.0.q.weight_scale": torch.ones(4, 2, dtype=torch.uint8),
        },
        "one scale, or one for each row",
    ),
    "pruned": ({"adaln_t_table": torch.ones(2, 2)}, "a pruned MiniMax-H3"),
    "a scale alone": ({"blocks.0.q.weight_scale": torch.ones(())}, "no 'blocks.0.q.weight'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_no_library_loads_is_refused_by_name(kind, checkpoint, tmp_path):
    weights, words = REFUSED[kind]
    file = single_files.write(weights, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors.*{words}"):
        load(file, checkpoint("t2v"))


def test_two_files_are_two_experts(checkpoint, tmp_path):
    folder = checkpoint("two_experts")
    files = {
        name: single_files.write_wan(folder, tmp_path / f"{name}.safetensors", component=name)
        for name in ("transformer", "transformer_2")
    }
    module = VideoModule.from_pretrained(folder, component=files, device_type="cpu")
    plain = load_plain(folder, expects_image=False)
    for name, file in files.items():
        assert files_of(module, name) == {file}
        check_same(module, getattr(plain, name), name)


def test_another_vae_is_a_file_or_a_folder(checkpoint, tmp_path):
    folder = checkpoint("t2v")
    own = Path(shutil.copytree(folder / "vae", tmp_path / "own"))
    (file,) = own.glob("*.safetensors")
    for place in (own, file):
        module = VideoModule.from_pretrained(folder, component={"vae": place}, device_type="cpu")
        assert files_of(module, "vae") == {file}
        check_same(module, load_plain(folder, expects_image=False).vae, "vae")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused(suffix, checkpoint, tmp_path):
    file = tmp_path / f"model{suffix}"
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="is a pickle.*safetensors"):
        load(file, checkpoint("t2v"))


def test_a_file_needs_the_pipeline_that_has_the_rest(checkpoint, tmp_path):
    file = single_files.write_wan(checkpoint("t2v"), tmp_path / "wan.safetensors")
    with pytest.raises(ValueError, match="Pass the pipeline that has the rest as base"):
        VideoModule.from_pretrained(file)
    with pytest.raises(ValueError, match="is a file. Pass the pipeline that has the rest"):
        load(file, file)


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_a_file_is_not_quantized_on_its_way_and_says_so(dtype, checkpoint, tmp_path):
    file = single_files.write_wan(checkpoint("t2v"), tmp_path / "wan.safetensors")
    with pytest.raises(ValueError, match=r"wan\.safetensors is a file\. Leave dtype out, or write"):
        load(file, checkpoint("t2v"), dtype=dtype)


@pytest.mark.parametrize(
    ("place", "kind", "width", "counterpart"),
    [
        ("", "t2v", 1536, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("", "t2v", 5120, "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        ("", "i2v", 5120, "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
        ("", "ti2v", 3072, "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
        ("high_noise_model", "t2v", 5120, "Wan-AI/Wan2.2-T2V-A14B-Diffusers"),
        ("high_noise_model", "i2v", 5120, "Wan-AI/Wan2.2-I2V-A14B-Diffusers"),
        ("", "flf2v", 5120, "no diffusers pipeline"),
    ],
)
def test_the_original_layout_is_named_with_its_counterpart(
    place, kind, width, counterpart, tmp_path
):
    (tmp_path / place).mkdir(exist_ok=True)
    config = {"_class_name": "WanModel", "model_type": kind, "dim": width}
    (tmp_path / place / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=counterpart):
        VideoModule.from_pretrained(tmp_path)
