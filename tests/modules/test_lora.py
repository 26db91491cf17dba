"""LoRA adapters of a placed module: the same frames as plain diffusers makes with them."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, SIZE
from support.loras import write_lora
from support.references import SEED, frames_of, load_plain

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident

SAMPLING = {**SIZE, "guidance_scale": 3.0}
PLACEMENTS = {
    "none": lambda: [],
    "streamed": lambda: [LayerwiseOffload("transformer")],
    "mapped": lambda: [LayerwiseOffload("transformer", host_memory="mapped")],
    "pinned": lambda: [LayerwiseOffload("transformer", host_memory="pinned")],
    "skippable": lambda: [LayerwiseOffload("transformer", skippable=True)],
    "partly_resident": lambda: [LayerwiseOffload("transformer.blocks", resident_blocks=1)],
    "model": lambda: [ModelOffload("transformer")],
    "resident": lambda: [Resident("transformer")],
    "cpu": lambda: [CPUExecution("transformer")],
}
STEPS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "before": (lambda m, a, b: None, lambda p, a, b: None),
    "one": (
        lambda m, a, b: m.load_lora(a, weight=0.7),
        lambda p, a, b: (
            p.load_lora_weights(a, adapter_name="first"),
            p.set_adapters(["first"], [0.7]),
        ),
    ),
    "two": (
        lambda m, a, b: m.load_lora(b, name="other"),
        lambda p, a, b: (
            p.load_lora_weights(b, adapter_name="other"),
            p.set_adapters(["first", "other"], [0.7, 1.0]),
        ),
    ),
    "switched": (
        lambda m, a, b: m.set_loras({"other": -0.5}),
        lambda p, a, b: p.set_adapters(["other"], [-0.5]),
    ),
    "off": (lambda m, a, b: m.set_loras({}), lambda p, a, b: p.disable_lora()),
    "fused": (
        lambda m, a, b: (m.set_loras({"first": 1.0}), m.fuse_lora(scale=0.5)),
        lambda p, a, b: (
            p.enable_lora(),
            p.set_adapters(["first"], [1.0]),
            p.fuse_lora(components=["transformer"], lora_scale=0.5),
        ),
    ),
    "unfused": (
        lambda m, a, b: m.unfuse_lora(),
        lambda p, a, b: p.unfuse_lora(components=["transformer"]),
    ),
    "one_unloaded": (
        lambda m, a, b: (m.unload_lora("first"), m.set_loras({"other": 2.0})),
        lambda p, a, b: (p.delete_adapters("first"), p.set_adapters(["other"], [2.0])),
    ),
    "all_unloaded": (lambda m, a, b: m.unload_lora(), lambda p, a, b: p.unload_lora_weights()),
    "loaded_again": (
        lambda m, a, b: m.load_lora(a),
        lambda p, a, b: (
            p.load_lora_weights(a, adapter_name="first"),
            p.set_adapters(["first"], [1.0]),
        ),
    ),
}


@pytest.fixture(scope="module")
def loras(checkpoint, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return (
        write_lora(checkpoint("t2v"), folder / "first", seed=11),
        write_lora(checkpoint("t2v"), folder / "second", seed=12, rank=2, targets=["to_k", "to_q"]),
    )


@pytest.fixture(scope="module")
def expected(checkpoint, loras) -> dict[str, np.ndarray]:
    pipeline = load_plain(checkpoint("t2v"), expects_image=False)
    frames = {}
    for step, (_, change) in STEPS.items():
        change(pipeline, *loras)
        frames[step] = frames_of(pipeline, SAMPLING)
    return frames


@pytest.fixture
def set_up() -> Iterator[Callable[..., Any]]:
    """Set a checkpoint's module up with placements; torn down at the end."""
    fabrics = []

    def make(folder: Path, placements: list[Any]) -> tuple[L.Fabric, VideoModule]:
        fabric = L.Fabric(
            accelerator="cpu", devices=1, strategy=HostResidentStrategy(), callbacks=placements
        )
        fabric.launch()
        module = VideoModule.from_pretrained(folder)
        fabric.setup(module)
        fabrics.append(fabric)
        return fabric, module

    yield make
    for fabric in fabrics:
        fabric.call("teardown")


def make_frames(fabric: L.Fabric, module: VideoModule) -> np.ndarray:
    prompts = PromptDataset([PROMPT], seed=SEED, **SAMPLING)
    return PredictLoop(fabric).run(module, prompts, return_predictions=True)[0].frames


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_frames_with_adapters_are_those_of_plain_diffusers(
    set_up, placement, checkpoint, loras, expected
) -> None:
    callbacks = PLACEMENTS[placement]()
    fabric, module = set_up(checkpoint("t2v"), list(callbacks))
    for step, (change, _) in STEPS.items():
        change(module, *loras)
        assert np.array_equal(make_frames(fabric, module), expected[step]), step
        for callback in callbacks:
            if callback.attachments[0].engine is not None:
                callback.attachments[0].engine.check()
    changed = [(expected["before"] != expected[step]).any() for step in STEPS]
    assert changed[1:6] == [True, True, True, False, True]
    fabric.call("teardown")
    assert np.array_equal(make_frames(fabric, module), expected["loaded_again"])
    assert all(weight.device.type == "cpu" for weight in module.parameters())


@pytest.mark.parametrize("is_used", [False, True], ids=["before_a_video", "after_one"])
@pytest.mark.parametrize("memory", ["mapped", "pinned"])
def test_layers_that_peft_itself_injects_make_the_same(set_up, memory, is_used, checkpoint) -> None:
    from peft import LoHaConfig, LoraConfig, inject_adapter_in_model

    configs = {
        "plain": LoraConfig(r=4, target_modules=["to_q", "ffn.net.2"]),
        "dora": LoraConfig(r=2, target_modules=["to_k"], use_dora=True),
        "loha": LoHaConfig(r=2, target_modules=["to_v"]),
    }

    def inject(model: torch.nn.Module, kind: str) -> None:
        torch.manual_seed(3)
        inject_adapter_in_model(configs[kind], model, adapter_name=kind)
        for name, weight in model.named_parameters():
            if kind in name.split(".") and "magnitude" not in name:
                torch.nn.init.normal_(weight, std=0.2)

    for kind in configs:
        streaming = LayerwiseOffload("transformer", host_memory=memory)
        fabric, module = set_up(checkpoint("t2v"), [streaming])
        plain = load_plain(checkpoint("t2v"), expects_image=False)
        if is_used:
            make_frames(fabric, module)
        inject(module.get_submodule("transformer"), kind)
        inject(plain.transformer, kind)
        expected = frames_of(plain, SAMPLING)
        assert np.array_equal(make_frames(fabric, module), expected), kind
        streaming.attachments[0].engine.check()
        fabric.call("teardown")


def test_an_adapter_moves_with_its_block_and_the_blocks_bytes_stay_in_the_file(
    set_up, checkpoint, loras
) -> None:
    streaming = LayerwiseOffload("transformer", host_memory="mapped")
    fabric, module = set_up(checkpoint("t2v"), [streaming])
    engine = streaming.attachments[0].engine
    make_frames(fabric, module)
    mapped, slots = engine.store.mapped_bytes, engine.device_bytes
    name = module.load_lora(loras[0])
    make_frames(fabric, module)
    added = sum(
        weight.numel() * weight.element_size()
        for fqn, weight in module.get_submodule("transformer.blocks.0").named_parameters()
        if "lora_" in fqn
    )
    assert engine.store.mapped_bytes == mapped
    assert slots + 2 * added <= engine.device_bytes
    copied = engine.stats.bytes_copied
    make_frames(fabric, module)
    blocks = sum(unit.size_bytes for unit in engine.units)
    assert (engine.stats.bytes_copied - copied) % blocks == 0
    module.unload_lora(name)
    make_frames(fabric, module)
    assert (engine.store.mapped_bytes, engine.device_bytes) == (mapped, slots)


def test_a_second_adapter_is_loaded_without_a_word_of_peft(set_up, checkpoint, loras) -> None:
    _, module = set_up(checkpoint("t2v"), [LayerwiseOffload("transformer")])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for lora in loras:
            module.load_lora(lora)
    assert not [one for one in said if "peft_config" in str(one.message)]


def test_an_adapter_that_fails_to_load_leaves_the_module_as_it_was(
    set_up, checkpoint, loras, expected, tmp_path
) -> None:
    fabric, module = set_up(checkpoint("t2v"), [LayerwiseOffload("transformer")])
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(Exception, match=r"."):
        module.load_lora(tmp_path / "broken.safetensors")
    assert module.loras == {}
    assert np.array_equal(make_frames(fabric, module), expected["before"])


def test_a_lora_after_an_exception_in_a_block_is_right(set_up, checkpoint, loras, expected) -> None:
    fabric, module = set_up(checkpoint("t2v"), [LayerwiseOffload("transformer")])

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    handle = module.get_submodule("transformer.blocks.1").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        make_frames(fabric, module)
    handle.remove()
    module.load_lora(loras[0], weight=0.7)
    assert np.array_equal(make_frames(fabric, module), expected["one"])


@pytest.mark.parametrize("memory", ["mapped", "pinned"])
@pytest.mark.parametrize("state", ["prefetching", "resident"])
def test_a_lora_that_comes_while_a_block_is_on_the_device_is_right(
    set_up, state, memory, checkpoint, loras, expected
) -> None:
    streaming = LayerwiseOffload("transformer", host_memory=memory)
    fabric, module = set_up(checkpoint("t2v"), [streaming])
    make_frames(fabric, module)
    engine = streaming.attachments[0].engine
    unit = engine.units[0]
    engine.prefetch(unit)
    if state == "resident":
        engine.wait(unit)
    assert unit.state.name.lower() == state
    module.load_lora(loras[0], weight=0.7)
    assert np.array_equal(make_frames(fabric, module), expected["one"])
    engine.check()


def test_an_expert_of_its_own_takes_a_lora(set_up, checkpoint, loras) -> None:
    placements = [LayerwiseOffload("transformer"), LayerwiseOffload("transformer_2")]
    fabric, module = set_up(checkpoint("two_experts"), placements)
    plain = load_plain(checkpoint("two_experts"), expects_image=False)
    plain.load_lora_weights(loras[0], load_into_transformer_2=True)
    module.load_lora(loras[0], denoiser="transformer_2")
    assert np.array_equal(make_frames(fabric, module), frames_of(plain, SAMPLING))
    named = [fqn for fqn, _ in module.named_parameters() if "lora_" in fqn]
    assert named
    assert all(fqn.startswith("transformer_2.") for fqn in named)
    with pytest.raises(ValueError, match="transformer, transformer_2, got 'other'"):
        module.load_lora(loras[1], denoiser="other")


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("no/such/file.safetensors", {}, FileNotFoundError, "no/such/file.safetensors"),
        ("empty", {}, FileNotFoundError, "must hold pytorch_lora_weights.safetensors"),
        ("first", {"weight": float("nan")}, ValueError, "finite number, got nan"),
        ("first", {"name": "taken"}, ValueError, "'taken' is loaded already"),
    ],
)
def test_a_wrong_choice_says_what_to_pass(
    set_up, checkpoint, loras, tmp_path, path, options, error, message
) -> None:
    _, module = set_up(checkpoint("t2v"), [])
    (tmp_path / "empty").mkdir()
    module.load_lora(loras[1], name="taken")
    place = {"first": loras[0], "empty": tmp_path / "empty"}.get(path, path)
    with pytest.raises(error, match=message):
        module.load_lora(place, **options)
    with pytest.raises(ValueError, match=r"No LoRA named 'none'.*taken"):
        module.set_loras({"none": 1.0})


def test_before_setup_it_says_when_to_call_it(checkpoint, loras) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    with pytest.raises(RuntimeError, match=r"Call load_lora after fabric\.setup"):
        module.load_lora(loras[0])


def test_without_peft_it_says_what_to_install(checkpoint, loras, monkeypatch) -> None:
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    with pytest.raises(ImportError, match=r"fastvideo-lightning\[lora\]"):
        module.load_lora(loras[0])
