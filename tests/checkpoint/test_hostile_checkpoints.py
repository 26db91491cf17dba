"""Damaged and hostile checkpoints: each a CheckpointError with a name, soon, in little memory."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import weights_of

from fastvideo_lightning import CheckpointError, VideoModule
from fastvideo_lightning.checkpoint.weights import read_header
from fastvideo_lightning.cli.app import run

FindCheckpoint = Callable[[str], Path]
Header = dict[str, Any]


def refused(folder: Path, named: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        VideoModule.from_pretrained(folder)
    assert str(named) in str(caught.value)
    return str(caught.value)


CONTENTS = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "nested": b'{"a":' * 40_000,
    "nested lists": b"[" * 200_000,
    "not a number": b'{"a": NaN}',
    "infinite": b'{"a": Infinity}',
    "a number without end": b'{"a": ' + b"9" * 100_000 + b"}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "no text": bytes(range(128, 256)),
}
READ = [
    *("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"),
    *("scheduler/scheduler_config.json", "tokenizer/tokenizer.json"),
    *("tokenizer/tokenizer_config.json", "transformer/diffusion_pytorch_model.safetensors"),
]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READ)
def test_a_file_of_anything_is_named(broken: Path, name: str, content: str) -> None:
    path = broken / name
    path.write_bytes(CONTENTS[content])
    if name == "tokenizer/tokenizer_config.json" and content in ("not a number", "infinite"):
        VideoModule.from_pretrained(broken)  # to transformers they are a setting that nobody reads
        return
    if name == "scheduler/scheduler_config.json" and content == "infinite":
        VideoModule.from_pretrained(broken)  # as diffusers writes it
        return
    refused(broken, path if name != "tokenizer/tokenizer.json" else path.parent)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_pipe, make_device, Path.mkdir])
@pytest.mark.parametrize("name", [*READ, "sampling.json", "tokenizer/vocab.json"])
def test_only_regular_files_are_opened(broken: Path, name: str, make: Any) -> None:
    path = broken / name
    path.unlink(missing_ok=True)
    make(path)
    if make is Path.mkdir and name.startswith("tokenizer"):
        path.rmdir()  # nothing opens a folder
        return
    refused(broken, path)


def test_a_file_too_large_to_be_read_whole_is_not(broken: Path) -> None:
    for name in ("tokenizer/tokenizer.json", "transformer/config.json"):
        path = broken / name
        kept = path.read_bytes()
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a hole, which takes no room
        refused(broken, path)
        path.write_bytes(kept)


def edit_header(path: Path, change: Callable[[Header], None]) -> None:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def entries(header: Header) -> list[Header]:
    return sorted(
        (entry for name, entry in header.items() if name != "__metadata__"),
        key=lambda entry: entry["data_offsets"],
    )


def first(**new: Any) -> Callable[[Header], None]:
    return lambda header: entries(header)[0].update(new)


def overlap(header: Header) -> None:
    one, two, *_ = entries(header)
    two["data_offsets"], two["shape"], two["dtype"] = [*one["data_offsets"]], one["shape"], "F32"
    one["dtype"] = "F32"


def leave_a_hole(header: Header) -> None:
    header.pop(next(name for name, entry in header.items() if entry is entries(header)[1]))


@pytest.mark.parametrize(
    "change",
    [
        first(data_offsets=[0, float("inf")]),
        first(data_offsets=[0.0, 4.0]),
        first(data_offsets=[-4, 0]),
        first(data_offsets=[0]),
        first(data_offsets=[0, 10**30]),
        first(data_offsets="0,4"),
        first(data_offsets=[True, 4]),
        first(data_offsets=None),
        first(shape=[-1, -4]),
        first(shape=[10**30]),
        first(shape=[10**10, 10**10]),
        first(shape=[0.5]),
        first(shape=3),
        first(shape=[[4]]),
        first(shape=[float("nan")]),
        first(dtype="F3"),
        first(dtype=[]),
        first(dtype=None),
        lambda header: header.update({"extra": []}),
        lambda header: header.update({"extra": {}}),
        overlap,
        leave_a_hole,
    ],
)
def test_a_header_that_safetensors_would_refuse_is_refused(broken: Path, change: Any) -> None:
    path = weights_of(broken)
    edit_header(path, change)
    refused(broken, path)


def shard(folder: Path, shards: Any, weight_map: Any = None) -> Path:
    """Have an index say where the denoiser's weights lie."""
    path = weights_of(folder)
    names = load_file(path)
    path.rename(path.with_name("one.safetensors"))
    index = path.with_name(path.name + ".index.json")
    weight_map = dict.fromkeys(names, shards) if weight_map is None else weight_map
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


OUTSIDE = [
    "../one.safetensors",
    "/etc/passwd",
    "sub/one.safetensors",
    "..",
    ".",
    "",
    3,
    None,
    [],
    "\0",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_lies_beside_its_index(broken: Path, name: Any) -> None:
    refused(broken, shard(broken, name))


@pytest.mark.parametrize("weight_map", [[], "x", 3, {"proj_out.bias": "one.safetensors"}])
def test_an_index_lists_what_its_shards_hold(broken: Path, weight_map: Any) -> None:
    refused(broken, shard(broken, None, weight_map))


def test_a_name_too_long_for_a_file_is_a_missing_shard(broken: Path) -> None:
    refused(broken, shard(broken, "a" * 5000).parent)


def edit(path: Path, **new: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **new}))


@pytest.mark.parametrize(
    "new",
    [
        *({"_class_name": name} for name in ("logging", "pipelines", "__class__", "nn", "UNet2D")),
        *({"_class_name": name} for name in ("WanTransformer3DModel", "a.b", "", None, 3, [], {})),
        *({"transformer": entry} for entry in ([{}, []], ["diffusers", 3], [1, 2], ["", ""])),
        *({"scheduler": ["diffusers", name]} for name in ("logging", "DiffusionPipeline", "nn")),
        *({"scheduler": ["diffusers", name]} for name in ("WanPipeline", "ConfigMixin")),
        *({"scheduler": ["transformers", name]} for name in ("__file__", "pipeline", "logging")),
        *({"scheduler": [library, "path"]} for library in ("os", "diffusers.utils", "subprocess")),
        {"../vae": ["diffusers", "AutoencoderKLWan"]},
        {"a b": ["diffusers", "AutoencoderKLWan"]},
    ],
)
def test_only_pipelines_and_their_parts_are_looked_up(broken: Path, new: dict[str, Any]) -> None:
    edit(broken / "model_index.json", **new)
    refused(broken, broken)


def test_a_pipeline_lists_what_it_needs(broken: Path) -> None:
    path = broken / "model_index.json"
    index = json.loads(path.read_text())
    del index["vae"]
    path.write_text(json.dumps(index))
    assert "lists no vae" in refused(broken, path)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("transformer/config.json", "num_layers", 10**9),
        ("transformer/config.json", "num_layers", 3000),
        ("transformer/config.json", "ffn_dim", 10**12),
        ("transformer/config.json", "num_attention_heads", 10**6),
        ("transformer/config.json", "num_layers", "x"),
        ("transformer/config.json", "patch_size", None),
        ("transformer/config.json", "quantization_config", [1]),
        ("transformer/config.json", "quantization_config", {"quant_method": "none"}),
        ("text_encoder/config.json", "num_layers", 10**9),
        ("text_encoder/config.json", "d_model", "x"),
        ("vae/config.json", "base_dim", 10**9),
        ("vae/config.json", "dim_mult", 3),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
        ("scheduler/scheduler_config.json", "solver_order", 10**9),
        ("scheduler/scheduler_config.json", "beta_schedule", {}),
    ],
)
def test_a_configuration_of_no_model_is_named(
    broken: Path, name: str, key: str, value: object
) -> None:
    path = broken / name
    edit(path, **{key: value})
    refused(broken, path.parent)


def test_a_configuration_of_a_large_model_is_refused_before_it_takes_memory(broken: Path) -> None:
    path = broken / "transformer" / "config.json"
    path.write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))  # of 14 billion weights
    refused(broken, path.parent)


DTYPES = [
    *(torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2),
    *(torch.float8_e5m2fnuz, torch.uint16, torch.uint32, torch.uint64, torch.complex64),
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.float4_e2m1fn_x2),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_header_has_any_dtype_of_the_format(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2, 8, dtype=torch.uint8).view(dtype)}, path)
    tensor = read_header(path)["weight"]
    expected = load_file(path)["weight"]
    assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)


def add(path: Path, **tensors: torch.Tensor) -> None:
    save_file({**load_file(path), **tensors}, path, {"format": "pt"})


PLACELESS = [
    *("blocks.9.attn1.to_q.weight", "extra", "blocks.0.attn1.to_q.weight_scale", "scaled_fp8"),
    *("blocks.0.attn1.to_q.scale_weight", "blocks.0.ffn.net.2.weight_scale_inv"),
]


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("name", PLACELESS)
def test_a_tensor_without_a_place_is_named(broken: Path, component: str, name: str) -> None:
    path = weights_of(broken, component)
    add(path, **{name: torch.ones(1)})
    said = refused(broken, path)
    assert repr(name) in said
    assert ("scales of fp8 weights" in said) == ("scale" in name)


def test_a_pickled_tensor_without_a_place_is_named(broken: Path) -> None:
    for component, name in [
        ("text_encoder", "pytorch_model.bin"),
        ("transformer", "diffusion_pytorch_model.bin"),
    ]:
        path = weights_of(broken, component)
        weights = load_file(path)
        path.unlink()
        torch.save({**weights, "extra.weight": torch.ones(1)}, path.parent / name)
        with pytest.raises(CheckpointError, match="'extra.weight', which .* has no place for"):
            VideoModule.from_pretrained(broken, allow_pickle=True)
        torch.save(weights, path.parent / name)
    VideoModule.from_pretrained(broken, allow_pickle=True)


def test_a_tensor_that_the_class_ignores_is_none_too_many(broken: Path) -> None:
    add(weights_of(broken), **{"blocks.0.attn2.norm_added_q.weight": torch.ones(1)})
    VideoModule.from_pretrained(broken)


def test_a_layer_too_few_in_the_configuration_is_named(broken: Path) -> None:
    path = broken / "transformer" / "config.json"
    edit(path, num_layers=json.loads(path.read_text())["num_layers"] - 1)
    assert "blocks." in refused(broken, weights_of(broken))


@pytest.mark.parametrize(
    ("component", "method", "package"),
    [
        ("transformer", {"quant_method": "modelopt", "quant_type": "FP8"}, "nvidia-modelopt"),
        ("transformer", {"quant_method": "quanto", "weights_dtype": "int8"}, "optimum-quanto"),
        ("transformer", {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ("text_encoder", {"quant_method": "quanto", "weights": "int8"}, "optimum-quanto"),
        ("text_encoder", {"quant_method": "hqq"}, "hqq"),
    ],
)
def test_a_quantizer_that_is_not_installed_is_named(
    broken: Path, component: str, method: Any, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(package)
    except PackageNotFoundError:
        pass
    else:
        pytest.skip(f"{package} is installed here")
    edit(broken / component / "config.json", quantization_config=method)
    assert run(["generate", "--model", str(broken), "--prompt", "a", "--accelerator", "cpu"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "nstall" in said
    assert package in said
