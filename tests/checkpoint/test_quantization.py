"""Quantized weights: streamed and plain make the same, and half of the bytes move."""

import numpy as np
import pytest
import torch
from support import checkpoints
from support.checkpoints import PROMPT, SIZE
from support.references import SEED, frames_of, load_plain
from torch import nn

from fastvideo_lightning import VideoGenerator, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident

SAMPLING = {**SIZE, "guidance_scale": 3.0}
PLACEMENTS = {
    "streamed": lambda: LayerwiseOffload("transformer"),
    "model": lambda: ModelOffload("transformer"),
    "resident": lambda: Resident("transformer"),
    "cpu": lambda: CPUExecution("transformer"),
}


class ByteParameter(nn.Parameter):
    """A parameter of bytes that knows how to read them, as GGUF's."""

    def __new__(cls, data: torch.Tensor, scale: float) -> "ByteParameter":
        self = torch.Tensor._make_subclass(cls, data, False)
        self.scale = scale
        return self


class ByteLinear(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        bytes_ = torch.randint(-127, 127, (width, width), dtype=torch.int8)
        self.weight = ByteParameter(bytes_, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        assert type(weight) is ByteParameter
        return x + x @ (weight.data.as_subclass(torch.Tensor).float() * weight.scale)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(ByteLinear(16, 1e-3 * (i + 1)) for i in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_parameters_of_a_class_of_their_own_stream_with_their_attributes() -> None:
    model, plain = Stack(), Stack()
    x = torch.randn(2, 16)
    streaming = LayerwiseOffload("blocks")
    streaming.attach(model, "cpu")
    for _ in range(2):
        assert torch.equal(model(x), plain(x))
    assert streaming.attachments[0].engine.units[0].size_bytes == 16 * 16
    streaming.detach()
    assert torch.equal(model(x), plain(x))


def test_one_that_hides_tensors_is_refused_by_name() -> None:
    model = Stack()
    model.blocks[1].weight.state = torch.ones(3)  # as bitsandbytes keeps its scales
    with pytest.raises(TypeError, match=r"blocks\.1\.weight is a ByteParameter"):
        LayerwiseOffload("blocks").attach(model, "cpu")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gguf_weights_stream_as_they_are(placement) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0

    def make() -> nn.Module:
        model = nn.Module()
        sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 64}
        model.transformer = checkpoints.transformer(seed=1, num_layers=4, **sizes)
        model.requires_grad_(False)
        for name, linear in list(model.named_modules()):
            if not isinstance(linear, nn.Linear) or "blocks" not in name:
                continue
            layer = GGUFLinear(
                linear.in_features, linear.out_features, True, compute_dtype=torch.float32
            )
            quantized = torch.from_numpy(gguf.quantize(linear.weight.numpy(), kind))
            layer.weight, layer.bias = GGUFParameter(quantized, quant_type=kind), linear.bias
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
        return model

    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 4, 16),
        "return_dict": False,
    }
    model, plain = make(), make()
    callback = PLACEMENTS[placement]()
    callback.attach(model, "cpu")
    for _ in range(2):
        assert torch.equal(model.transformer(**inputs)[0], plain.transformer(**inputs)[0])
    callback.detach()
    assert isinstance(model.transformer.blocks[0].attn1.to_q.weight, GGUFParameter)


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao", reason="needs torchao")


KINDS = {"fp8": "Float8WeightOnlyConfig", "int8": "Int8WeightOnlyConfig"}


def plain_quantized(folder, dtype: str):
    import torchao.quantization
    from diffusers import TorchAoConfig, WanTransformer3DModel

    config = TorchAoConfig(getattr(torchao.quantization, KINDS[dtype])())
    model = WanTransformer3DModel.from_pretrained(
        folder, subfolder="transformer", quantization_config=config, torch_dtype=torch.float32
    )
    pipeline = load_plain(folder, expects_image=False)
    pipeline.transformer = model
    return pipeline


@pytest.mark.parametrize("dtype", KINDS)
def test_frames_of_quantized_weights_are_those_of_plain_diffusers_wherever_they_are(
    torchao, dtype, checkpoint
) -> None:
    folder = checkpoint("t2v")
    expected = frames_of(plain_quantized(folder, dtype), SAMPLING)
    for make in (*PLACEMENTS.values(), None):
        with VideoGenerator.from_pretrained(
            folder, accelerator="cpu", dtype=dtype, callbacks=[make()] if make else []
        ) as generator:
            video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **SAMPLING)
            assert np.array_equal(video.frames, expected)
            weight = generator.module.get_submodule("transformer.blocks.0.attn1.to_q").weight
            assert "Tensor" in type(weight).__name__
            encoder = generator.module.get_submodule("text_encoder")
            assert {type(p) for p in encoder.parameters()} == {nn.Parameter}
    unquantized = VideoGenerator.from_pretrained(folder, accelerator="cpu")
    plain = unquantized.generate_video(PROMPT, save_video=False, seed=SEED, **SAMPLING)
    assert (plain.frames != expected).any()


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_a_step_copies_half_of_what_bf16_does(torchao, dtype, tmp_path) -> None:
    wide = checkpoints.transformer(
        seed=1, num_attention_heads=8, attention_head_dim=64, ffn_dim=2048
    )
    checkpoints.save(checkpoints.text_pipeline(transformer=wide), tmp_path)
    bytes_of = {}
    for chosen in ("bf16", dtype):
        module = VideoModule.from_pretrained(tmp_path, dtype=chosen, device_type="cuda")
        streaming = LayerwiseOffload("transformer", host_memory="pinned")
        streaming.attach(module, "cpu")
        bytes_of[chosen] = sum(unit.size_bytes for unit in streaming.attachments[0].engine.units)
        streaming.detach()
    assert 0.48 < bytes_of[dtype] / bytes_of["bf16"] < 0.56


@pytest.mark.parametrize("dtype", KINDS)
def test_loras_around_quantized_weights_are_those_of_plain_diffusers(
    torchao, dtype, checkpoint, tmp_path
) -> None:
    from support.loras import write_lora

    folder, whole = checkpoint("t2v"), ["transformer"]
    first = write_lora(folder, tmp_path / "first", seed=3)
    second = write_lora(folder, tmp_path / "second", seed=4, targets=["to_k"])
    plain, frames = plain_quantized(folder, dtype), []
    with VideoGenerator.from_pretrained(
        folder, accelerator="cpu", dtype=dtype, callbacks=[LayerwiseOffload("transformer")]
    ) as generator:

        def check() -> None:
            video = generator.generate_video(PROMPT, save_video=False, seed=SEED, **SAMPLING)
            frames.append(video.frames)
            assert np.array_equal(video.frames, frames_of(plain, SAMPLING)), len(frames)

        check()
        for file in (first, second):
            generator.load_lora(file)
            plain.load_lora_weights(file, adapter_name=file.name)
        generator.set_loras({"first": 0.7, "second": -1.0})
        plain.set_adapters(["first", "second"], [0.7, -1.0])
        check()
        generator.unload_lora("second")
        # Plain diffusers does not fuse once an adapter of other layers was there: it starts anew.
        plain = plain_quantized(folder, dtype)
        plain.load_lora_weights(first, adapter_name="first")
        plain.set_adapters(["first"], [0.7])
        check()
        generator.load_lora(second, weight=0.0)  # of layers that the first does not have
        generator.fuse_lora(scale=0.5)
        plain.fuse_lora(components=whole, lora_scale=0.5)
        check()
        generator.unfuse_lora()
        plain.unfuse_lora(components=whole)
        generator.unload_lora()
        plain.unload_lora_weights()
        check()
    pairs = zip(frames, frames[1:], strict=False)
    assert all((before != after).any() for before, after in pairs)


def test_packing_refuses_a_quantized_dtype(checkpoint, tmp_path) -> None:
    from fastvideo_lightning.pack.packing import plan_packing

    with pytest.raises(ValueError, match="dtype='fp8' quantizes while a model is loaded"):
        plan_packing(checkpoint("t2v"), tmp_path / "packed", dtype="fp8")


def test_what_was_saved_quantized_is_not_quantized_anew(torchao, tmp_path) -> None:
    from diffusers import TorchAoConfig, WanTransformer3DModel
    from torchao.quantization import Int8WeightOnlyConfig

    checkpoints.write_t2v(tmp_path)
    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = WanTransformer3DModel.from_pretrained(
        tmp_path, subfolder="transformer", quantization_config=config, torch_dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match="saved quantized by torchao.* Leave dtype out"):
        VideoModule.from_pretrained(tmp_path, dtype="fp8")
    weight = VideoModule.from_pretrained(tmp_path).transformer.blocks[0].attn1.to_q.weight
    assert type(weight.data).__name__ == "Int8Tensor"


def test_without_torchao_it_says_what_to_install(checkpoint, monkeypatch) -> None:
    monkeypatch.setattr("fastvideo_lightning.libraries.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"fastvideo-lightning\[quantized\]"):
        VideoModule.from_pretrained(checkpoint("t2v"), dtype="fp8")
