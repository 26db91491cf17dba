"""What is said of an adapter that cannot be loaded, and where the hub's cache is looked into."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from support.checkpoints import transformer, weights_of
from support.loras import TARGETS, write_lora

from fastvideo_lightning import VideoModule
from fastvideo_lightning.cli.app import run

DEFAULT_FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def module(checkpoint) -> VideoModule:
    made = VideoModule.from_pretrained(checkpoint("t2v"))
    made.check_placement()
    return made


@pytest.fixture
def lora(checkpoint, tmp_path) -> Path:
    return write_lora(checkpoint("t2v"), tmp_path / "style", seed=1)


def write_wider(folder: Path) -> Path:
    """Write a LoRA of a model that has twice as many heads."""
    model = transformer(seed=1, num_attention_heads=4)
    model.add_adapter(LoraConfig(r=4, target_modules=TARGETS))
    WanPipeline.save_lora_weights(folder, get_peft_model_state_dict(model))
    return folder


def write_deeper(folder: Path, *, only_beyond: bool = False) -> Path:
    """Write a LoRA of a model with twice as many blocks: of all, or of those beyond the second."""
    model = transformer(seed=1, num_layers=4)
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q"]))
    weights = get_peft_model_state_dict(model)
    kept = {k: w for k, w in weights.items() if not only_beyond or k.startswith("blocks.3.")}
    WanPipeline.save_lora_weights(folder, kept)
    return folder


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    """What diffusers' loaders log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    for name in ("diffusers.loaders.peft", "diffusers.utils.peft_utils"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
    return lines


def test_one_of_a_model_of_another_size_is_refused_in_a_line(
    module, lora, tmp_path, logged
) -> None:
    module.load_lora(lora)
    state = {fqn: weight.clone() for fqn, weight in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"cannot load .*wider into WanPipeline \(.*size mismatch"):
        module.load_lora(write_wider(tmp_path / "wider"))
    assert logged == []
    assert module.loras == {"style": 1.0}
    after = module.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[fqn], weight) for fqn, weight in state.items())


UNPLACED = "8 weights of the LoRA {} found no place in the model, such as {}. It was most likely "
UNPLACED += "made for another model: pass one that was made for this one."
FIRST_UNPLACED = "blocks.2.attn1.to_q.lora_A.weight"


@pytest.mark.parametrize("others", [0, 1])
def test_one_of_a_deeper_model_is_refused_and_leaves_no_layer(
    module, lora, tmp_path, logged, others
) -> None:
    deeper = write_deeper(tmp_path / "deeper")
    for _ in range(others):
        module.load_lora(lora)
    layers = [name for name, _ in module.named_modules()]
    with pytest.raises(ValueError, match="found no place") as refused:
        module.load_lora(deeper)
    assert str(refused.value) == UNPLACED.format(deeper, FIRST_UNPLACED)
    assert logged == []
    assert module.loras == ({"style": 1.0} if others else {})
    assert [name for name, _ in module.named_modules()] == layers


def test_a_file_of_which_no_weight_has_a_place_is_refused_in_a_short_line(
    module, lora, tmp_path, logged, monkeypatch
) -> None:
    monkeypatch.setattr("fastvideo_lightning.modules.lora_files._MOST_SHOWN", 60)
    module.load_lora(lora)
    beyond = write_deeper(tmp_path / "beyond", only_beyond=True)
    with pytest.raises(ValueError, match=r"cannot load .*beyond into WanPipeline") as caught:
        module.load_lora(beyond)
    reason = str(caught.value).partition("Error: ")[2]
    assert reason.startswith("Target modules {'blocks.3.attn")
    assert reason.index(" ...). Pass one") <= 60
    assert logged == []
    assert module.loras == {"style": 1.0}


def test_the_command_refuses_weights_without_a_place(checkpoint, tmp_path, capsys) -> None:
    deeper = write_deeper(tmp_path / "deeper")
    words = ["--model", str(checkpoint("t2v")), "--lora", str(deeper), "--prompt", "a red circle"]
    words += ["--height", "32", "--width", "32", "--num-frames", "5", "--num-inference-steps", "1"]
    assert run(["generate", *words, "--no-save-video", "--accelerator", "cpu"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert UNPLACED.format(deeper, FIRST_UNPLACED) in said


def test_a_file_that_holds_no_adapter_is_named(module, checkpoint) -> None:
    file = weights_of(checkpoint("t2v"))
    with pytest.raises(ValueError, match=rf"cannot load .*{file.name} into WanPipeline"):
        module.load_lora(file)


@pytest.mark.parametrize(
    ("name", "instead"), [("v1.2", "v1_2"), (3, "3"), ("train", "train_lora"), ("pop", "pop_lora")]
)
def test_a_name_that_peft_cannot_use_is_refused(module, lora, name, instead) -> None:
    with pytest.raises(ValueError, match=f"{name!r}.* Pass name='{instead}'"):
        module.load_lora(lora, name=name)
    assert module.loras == {}


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_the_caches_file_is_loaded(
    module, lora, tmp_path, monkeypatch, offline
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"some/camera is not in the .*`hf download some"):
        module.load_lora("some/camera")
    repository = tmp_path / "models--some--camera"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    shutil.copy(lora / DEFAULT_FILE, repository / "snapshots" / "abc")
    assert module.load_lora("some/camera") == "camera"


def test_weights_are_a_mapping(module, lora) -> None:
    module.load_lora(lora)
    with pytest.raises(TypeError, match=r"got \['style'\]. Pass a dictionary such as"):
        module.set_loras(["style"])
