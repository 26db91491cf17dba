"""What is said of an adapter that cannot be loaded, and where the hub's cache is looked into."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import transformer, weights_of
from diffusers import WanPipeline
from loras import TARGETS, write_lora
from peft import LoraConfig, get_peft_model_state_dict

from fastvideo_lightning import VideoModule

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


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    """What diffusers' loader logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers.loaders.peft")
    monkeypatch.setattr(logger, "handlers", [handler])
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


def test_a_file_that_holds_no_adapter_is_named(module, checkpoint) -> None:
    file = weights_of(checkpoint("t2v"))
    with pytest.raises(ValueError, match=rf"cannot load .*{file.name} into WanPipeline"):
        module.load_lora(file)


@pytest.mark.parametrize(("name", "instead"), [("v1.2", "v1_2"), (3, "3")])
def test_a_name_that_peft_cannot_use_is_refused(module, lora, name, instead) -> None:
    with pytest.raises(ValueError, match=f"got {name!r}. Pass name='{instead}'"):
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
