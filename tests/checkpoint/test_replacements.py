"""A file or a folder that is not what its component needs is told before it is loaded."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support import single_files

from fastvideo_lightning import CheckpointError, VideoModule


def load(folder: Path, **component: Path) -> VideoModule:
    return VideoModule.from_pretrained(folder, component=component, device_type="cpu")


@pytest.mark.parametrize(
    ("component", "name", "says", "wanted"),
    [
        ("transformer", "wan2.2_t2v_low_noise_14B_fp8", "low", "high"),
        ("transformer", "Wan2.2-T2V-A14B-LowNoise-Q8", "low", "high"),
        ("transformer", "LOW", "low", "high"),
        ("transformer_2", "wan-HIGH-v2", "high", "low"),
    ],
)
def test_a_file_that_is_called_the_other_expert_is_told(
    component, name, says, wanted, checkpoint, tmp_path
):
    folder = checkpoint("two_experts")
    file = single_files.write_wan(folder, tmp_path / f"{name}.safetensors", component=component)
    told = rf"its name says {says} noise, and {component} is the expert for {wanted} noise"
    with pytest.warns(UserWarning, match=told):
        load(folder, **{component: file})


def test_a_file_whose_header_says_the_other_expert_is_told(checkpoint, tmp_path):
    folder, file = checkpoint("two_experts"), tmp_path / "wan.safetensors"
    notes = {"modelspec.title": "Wan 2.2 I2V low noise"}
    save_file(single_files.read_wan(folder), file, metadata=notes)
    with pytest.warns(UserWarning, match="its header says low noise"):
        load(folder, transformer=file)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("two_experts", "wan_high_noise_low_vram"),
        ("two_experts", "slow_lowest"),
        ("two_experts", "wan_low_high"),
        ("t2v", "wan_low_noise"),
    ],
)
def test_a_file_that_may_be_the_right_one_is_not_told(kind, name, checkpoint, tmp_path):
    folder = checkpoint(kind)
    file = single_files.write_wan(folder, tmp_path / f"{name}.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(folder, transformer=file)


def test_two_experts_with_the_same_weights_are_refused(checkpoint, tmp_path):
    folder = checkpoint("two_experts")
    file = single_files.write_wan(folder, tmp_path / "wan.safetensors")
    copy = Path(shutil.copy(file, tmp_path / "copy.safetensors"))
    for other in (file, copy):
        with pytest.raises(ValueError, match=r"are the same weights.*Pass the file of each"):
            load(folder, transformer=file, transformer_2=other)


@pytest.mark.parametrize(
    ("component", "field", "found"),
    [
        ("transformer", "_class_name", "CogVideoXTransformer3DModel"),
        ("vae", "_class_name", "AutoencoderKLCogVideoX"),
        ("text_encoder", "model_type", "gemma2"),
        ("scheduler", "_class_name", "PNDMScheduler"),
    ],
)
def test_a_folder_with_another_class_is_refused_by_name(
    component, field, found, checkpoint, tmp_path
):
    folder = checkpoint("t2v")
    own = Path(shutil.copytree(folder / component, tmp_path / "own"))
    (config,) = own.glob("*config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), field: found}))
    with pytest.raises(CheckpointError, match=rf"component {component}=.*is a {found}.*has a "):
        load(folder, **{component: own})


def test_an_encoder_saved_with_its_decoder_is_an_encoder(checkpoint, tmp_path):
    folder = checkpoint("t2v")
    own = Path(shutil.copytree(folder / "text_encoder", tmp_path / "own"))
    config = json.loads((own / "config.json").read_text())
    config["architectures"] = ["UMT5ForConditionalGeneration"]
    (own / "config.json").write_text(json.dumps(config))
    assert load(folder, text_encoder=own).text_encoders == ("text_encoder",)
