"""diffusers' other quantization configurations: each streams and makes the frames of diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import checkpoints
from support.checkpoints import SIZE
from support.references import check_frames, frames_of, load_plain

from fastvideo_lightning import VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload

SAMPLING = {**SIZE, "guidance_scale": 3.0}
PLACEMENTS = {
    "pinned": lambda: LayerwiseOffload("transformer", host_memory="pinned"),
    "skippable": lambda: LayerwiseOffload("transformer", skippable=True),
    "model": lambda: ModelOffload("transformer"),
}


def torchao(kind: str) -> Any:
    kinds = pytest.importorskip("torchao.quantization", reason="needs torchao")
    from diffusers import TorchAoConfig

    return TorchAoConfig(getattr(kinds, kind)())


def quanto(weights_dtype: str) -> Any:
    pytest.importorskip("optimum.quanto", reason="needs optimum-quanto")
    from diffusers import QuantoConfig

    return QuantoConfig(weights_dtype=weights_dtype)


def sdnq(weights_dtype: str) -> Any:
    pytest.importorskip("sdnq", reason="needs sdnq")
    from diffusers import SDNQConfig

    return SDNQConfig(weights_dtype=weights_dtype)


CONFIGS: dict[str, Callable[[], Any]] = {
    "torchao_int8_dynamic": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao_intx": lambda: torchao("IntxWeightOnlyConfig"),
    "quanto_int8": lambda: quanto("int8"),
    "quanto_float8": lambda: quanto("float8"),
    "quanto_int4": lambda: quanto("int4"),
    "sdnq_int8": lambda: sdnq("int8"),
    "sdnq_uint4": lambda: sdnq("uint4"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 256}
    model = checkpoints.transformer(seed=1, num_layers=4, **sizes)
    checkpoints.save(checkpoints.text_pipeline(transformer=model), folder)
    return folder


def load(folder: Path, config: Any) -> Any:
    """Plain diffusers' pipeline with a transformer that its loader quantizes."""
    from diffusers import WanTransformer3DModel

    pipeline = load_plain(folder, expects_image=False)
    pipeline.transformer = WanTransformer3DModel.from_pretrained(
        folder, subfolder="transformer", quantization_config=config, torch_dtype=torch.float32
    )
    return pipeline


@pytest.mark.parametrize("name", CONFIGS)
def test_frames_are_those_of_plain_diffusers_wherever_the_weights_are(name, folder) -> None:
    expected = frames_of(load(folder, CONFIGS[name]()), SAMPLING)
    unquantized = frames_of(load_plain(folder, expects_image=False), SAMPLING)
    assert (expected != unquantized).any(), "nothing was quantized"
    for make in PLACEMENTS.values():
        module = VideoModule.from_pipeline(load(folder, CONFIGS[name]()))
        check_frames(module, [make()], expected, SAMPLING)


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_a_checkpoint_that_was_saved_quantized_loads_as_it_is(kind, folder, tmp_path) -> None:
    load(folder, torchao(kind)).save_pretrained(tmp_path)
    # Not what was saved: from another file weights may lie at other distances, and products round
    # by that on some processors.
    expected = frames_of(load_plain(tmp_path, expects_image=False), SAMPLING)
    for memory in ("auto", "pinned"):
        module = VideoModule.from_pretrained(tmp_path)
        streaming = LayerwiseOffload("transformer", host_memory=memory)
        check_frames(module, [streaming], expected, SAMPLING)
        weight = module.get_submodule("transformer.blocks.0.attn1.to_q").weight
        assert hasattr(weight, "__tensor_flatten__")
