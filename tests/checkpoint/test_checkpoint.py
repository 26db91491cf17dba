import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from safetensors.torch import load_file
from support import checkpoints
from support.checkpoints import weights_of
from support.references import load_plain
from torch import nn

from fastvideo_lightning import VideoModule
from fastvideo_lightning.checkpoint.pipeline import _load_part, load_pipeline, open_checkpoint

FindCheckpoint = Callable[[str], Path]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_building_reads_no_weight(checkpoint: FindCheckpoint) -> None:
    pipeline, sources = load_pipeline(open_checkpoint(checkpoint("t2v")), dtype="fp32")
    models = {n: c for n, c in pipeline.components.items() if isinstance(c, nn.Module)}
    names = {f"{n}.{w}" for n, c in models.items() for w in c.state_dict()}
    assert all(w.is_meta for c in models.values() for w in c.parameters())
    assert not any(b.is_meta for c in models.values() for b in c.buffers())
    assert sources.keys() == names


def test_sources_hold_what_diffusers_loads(checkpoint: FindCheckpoint) -> None:
    folder = checkpoint("i2v_clip")
    _, sources = load_pipeline(open_checkpoint(folder), dtype="fp32")
    plain = load_plain(folder, expects_image=True)
    for name, component in plain.components.items():
        if not isinstance(component, nn.Module):
            continue
        for fqn, expected in component.state_dict().items():
            source = sources[f"{name}.{fqn}"]
            out = torch.empty(source.shape, dtype=source.dtype_on(CPU))
            source.read_into(out)
            assert torch.equal(out, expected), f"{name}.{fqn}"
            with source.path.open("rb") as file:
                file.seek(source.offset)
                raw = file.read(source.tensor.size_bytes)
            assert torch.equal(
                torch.frombuffer(bytearray(raw), dtype=source.stored_dtype).view(source.shape), out
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_are_those_of_plain_loading(checkpoint: FindCheckpoint, dtype: torch.dtype) -> None:
    from diffusers import DiffusionPipeline

    folder = checkpoint("t2v")
    _, sources = load_pipeline(open_checkpoint(folder), dtype=dtype)
    plain = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    for name, component in plain.components.items():
        if isinstance(component, nn.Module):
            for fqn, weight in component.state_dict().items():
                source = sources[f"{name}.{fqn}"]
                out = torch.empty(source.shape, dtype=source.dtype_on(CPU))
                source.read_into(out)
                assert out.dtype == weight.dtype, f"{name}.{fqn}"
                assert torch.equal(out, weight), f"{name}.{fqn}"


def test_auto_is_fp32_on_a_cpu_and_bf16_beside_an_fp32_vae_on_a_gpu(
    checkpoint: FindCheckpoint,
) -> None:
    sources = VideoModule.from_pretrained(checkpoint("t2v")).weight_sources
    by_place = {
        name: (sources[name].dtype_on(CPU), sources[name].dtype_on(CUDA))
        for name in (
            "transformer.blocks.0.attn1.to_q.weight",
            "transformer.blocks.0.scale_shift_table",
            "text_encoder.encoder.block.0.layer.0.SelfAttention.q.weight",
            "vae.decoder.conv_in.weight",
        )
    }
    fp32, bf16 = torch.float32, torch.bfloat16
    assert list(by_place.values()) == [(fp32, bf16), (fp32, fp32), (fp32, bf16), (fp32, fp32)]


def test_default_dtype_and_grad_are_left_as_diffusers_leaves_them(
    checkpoint: FindCheckpoint,
) -> None:
    plain = DiffusionPipeline.from_pretrained(checkpoint("t2v"))
    module = VideoModule.from_pretrained(checkpoint("t2v"), dtype="bf16")
    assert torch.get_default_dtype() is torch.float32
    for name, weight in module.named_parameters():
        component, _, fqn = name.partition(".")
        expected = getattr(plain, component).get_parameter(fqn).requires_grad
        assert weight.requires_grad is expected, name
    assert not any(child.training for child in module.modules())


def test_tied_weights_stay_one_parameter(checkpoint: FindCheckpoint) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    encoder = module.get_submodule("text_encoder")
    tied = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    assert len({module.weight_sources[name].offset for name in tied}) == 1
    module.on_predict_start()
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    assert not encoder.shared.weight.is_meta


def test_shards_and_variants_are_found(checkpoint: FindCheckpoint, tmp_path: Path) -> None:
    plain = load_plain(checkpoint("t2v"), expects_image=False)
    plain.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    module = VideoModule.from_pretrained(tmp_path, variant="fp16")
    module.on_predict_start()
    for fqn, weight in plain.transformer.state_dict().items():
        assert torch.equal(module.get_submodule("transformer").state_dict()[fqn], weight)


def test_renamed_keys_are_left_to_the_library(broken: Path) -> None:
    path = weights_of(broken, "text_encoder")
    for old in path.parent.glob("*"):
        if old.suffix == ".safetensors":
            torch.save(load_file(old), path.parent / "pytorch_model.bin")
            old.unlink()
    module = VideoModule.from_pretrained(broken, dtype="fp32", allow_pickle=True)
    encoder = module.get_submodule("text_encoder")
    assert not any(weight.is_meta for weight in encoder.parameters())
    assert not any(name.startswith("text_encoder.") for name in module.weight_sources)
    assert module.get_submodule("transformer").proj_out.weight.is_meta


def test_a_14b_model_is_built_without_its_memory(broken: Path) -> None:
    """Build 28 GB of shapes over an index of headers only: no byte of a weight exists."""
    from diffusers import WanTransformer3DModel

    from fastvideo_lightning.checkpoint.components import RunDtypes, build_without_weights
    from fastvideo_lightning.checkpoint.weights import StoredTensor

    with torch.device("meta"):
        shapes = WanTransformer3DModel().state_dict()
    (broken / "transformer" / "config.json").write_text(
        json.dumps({"_class_name": "WanTransformer3DModel"})
    )
    tensors = {
        name: StoredTensor(Path("absent"), 0, weight.shape, torch.bfloat16)
        for name, weight in shapes.items()
    }
    before = resident_bytes()
    component = build_without_weights(
        WanTransformer3DModel,
        broken / "transformer",
        tensors,
        RunDtypes(torch.float32, torch.bfloat16),
        torch.bfloat16,
    )
    assert component is not None
    assert sum(weight.numel() for weight in component.module.parameters()) > 14e9
    assert resident_bytes() - before < 300e6


def resident_bytes() -> int:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc, which only Linux has")
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_every_kind_finds_all_its_weights(checkpoint: FindCheckpoint) -> None:
    for kind in checkpoints.WRITERS:
        module = VideoModule.from_pretrained(checkpoint(kind))
        assert module.weight_sources.keys() == module.state_dict().keys(), kind


def test_a_weight_that_needs_no_cast_lies_on_the_cpu_as_in_its_file(broken: Path) -> None:
    module = VideoModule.from_pretrained(broken, dtype="fp32")
    module.on_predict_start()
    name = "transformer.blocks.0.attn1.to_q.weight"
    weight, source = module.get_parameter(name), module.weight_sources[name]
    assert source.offset % 64, "an aligned one would show nothing"
    assert weight.data_ptr() % 4096 == source.offset % 4096
    before = source.path.read_bytes()
    with torch.no_grad():
        weight.add_(1)
    assert source.path.read_bytes() == before


def test_a_scheduler_with_infinite_numbers_is_loaded_as_diffusers_saves_it(tmp_path: Path) -> None:
    DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    assert "-Infinity" in (tmp_path / "scheduler_config.json").read_text()
    scheduler = _load_part(tmp_path, DPMSolverMultistepScheduler)
    assert scheduler.config.lambda_min_clipped == -math.inf
