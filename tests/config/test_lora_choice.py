"""LoRA files as one names them on the command line and in a file of options."""

from pathlib import Path

import pytest
from support.recorders import read_errors, record_calls

from fastvideo_lightning.cli.app import run
from fastvideo_lightning.config import LoraChoice
from fastvideo_lightning.modules.lora_files import name_each


@pytest.fixture
def calls(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b:c.safetensors"):
        Path(name).touch()
    return record_calls(monkeypatch)


def loras(calls):
    return [call[1:3] for call in calls if call[0] == "lora"]


def test_several_loras_reach_the_generator_in_order_once_it_is_set_up(calls):
    options = ["--lora", "a.safetensors:0.8", "--lora", "hub/id:-1", "--lora", "b:c.safetensors"]
    assert run(["generate", "--prompt", "a", *options]) == 0
    assert loras(calls) == [("a.safetensors", 0.8), ("hub/id", -1.0), ("b:c.safetensors", 1.0)]
    assert [call[0] for call in calls][-6:] == ["setup", *["lora"] * 3, "generate", "close"]


@pytest.mark.parametrize("written", ["[a.safetensors:0.5, hub/id]", "a.safetensors:0.5"])
def test_a_file_of_options_may_hold_one_or_several(calls, written):
    Path("c.yaml").write_text(f"prompt: a\nlora: {written}\n")
    assert run(["generate", "--config", "c.yaml"]) == 0
    assert loras(calls)[0] == ("a.safetensors", 0.5)
    calls.clear()
    assert run(["generate", "--config", "c.yaml", "--lora", "other/one"]) == 0
    assert loras(calls) == [("other/one", 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.safetensors:0.5", "There is no LoRA 'nowhere.safetensors'."),
        ("a.safetensors:nan", "must be a finite number, got nan."),
        (".", "must hold pytorch_lora_weights.safetensors or one other safetensors file"),
    ],
)
def test_a_wrong_one_is_refused_before_the_model_is_looked_for(calls, capsys, text, message):
    assert run(["generate", "--prompt", "a", "--lora", text]) == 2
    assert message in read_errors(capsys)[0]
    assert calls == []


FILE, DOTTED = "a.safetensors", "style@v2.safetensors"
AT_HOME = "at_home@night"


@pytest.mark.parametrize(
    ("text", "path", "weight", "denoiser"),
    [
        (f"{FILE}@transformer", FILE, 1.0, "transformer"),
        (f"{FILE}:0.8@transformer_2", FILE, 0.8, "transformer_2"),
        (f"{FILE}@transformer_2:0.8", FILE, 0.8, "transformer_2"),
        ("hub/id@transformer_2", "hub/id", 1.0, "transformer_2"),
        ("hub/id:-1@transformer", "hub/id", -1.0, "transformer"),
        (DOTTED, DOTTED, 1.0, None),
        (f"{DOTTED}:0.5", DOTTED, 0.5, None),
        (f"{DOTTED}@transformer_2", DOTTED, 1.0, "transformer_2"),
        (AT_HOME, AT_HOME, 1.0, None),
        (f"{AT_HOME}:0.5@transformer", AT_HOME, 0.5, "transformer"),
        ("half:0.5", "half:0.5", 1.0, None),
        ("half:0.5:0.25", "half:0.5", 0.25, None),
    ],
)
def test_what_a_lora_is_for_stands_behind_its_path(
    text, path, weight, denoiser, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path(FILE).touch()
    Path(DOTTED).touch()
    for folder in (AT_HOME, "half:0.5"):
        Path(folder).mkdir()
        Path(folder, FILE).touch()
    assert LoraChoice.parse(text) == LoraChoice(path, weight, denoiser)


def test_a_path_of_windows_keeps_its_drive(monkeypatch):
    monkeypatch.setattr("fastvideo_lightning.config.lora.find_lora", lambda path: None)
    path = r"C:\loras\high.safetensors"
    assert LoraChoice.parse(path) == LoraChoice(path)
    assert LoraChoice.parse(f"{path}:0.5@transformer_2") == LoraChoice(path, 0.5, "transformer_2")


@pytest.mark.parametrize("by_file", [False, True])
def test_each_of_two_reaches_its_expert(calls, by_file):
    words = ["a.safetensors@transformer", "hub/id:0.5@transformer_2"]
    if by_file:
        Path("c.yaml").write_text(f'prompt: a\nlora: ["{words[0]}", "{words[1]}"]\n')
        assert run(["generate", "--config", "c.yaml"]) == 0
    else:
        options = [word for each in words for word in ("--lora", each)]
        assert run(["generate", "--prompt", "a", *options]) == 0
    found = [call[1:] for call in calls if call[0] == "lora"]
    assert found == [
        ("a.safetensors", 1.0, "a", "transformer"),
        ("hub/id", 0.5, "id", "transformer_2"),
    ]


def test_names_that_torch_has_for_something_are_changed(tmp_path):
    for name in ("train", "update", "plain"):
        (tmp_path / f"{name}.safetensors").touch()
    choices = [LoraChoice(str(tmp_path / f"{n}.safetensors")) for n in ("train", "update", "plain")]
    assert name_each(choices) == ["train_lora", "update_lora", "plain"]


def test_a_folder_means_its_one_file(tmp_path):
    for name in ("only.safetensors", "readme.md"):
        (tmp_path / name).touch()
    assert LoraChoice.parse(f"{tmp_path}:0.25").weight == 0.25


def test_files_of_one_name_are_told_apart_by_numbers(calls):
    paths = ["a.safetensors", "hub/a_2", "hub/a", "other/a", "a.safetensors:0.5"]
    names = name_each(map(LoraChoice.parse, paths))
    assert names == ["a", "a_2", "a_3", "a_4", "a_5"]
    options = [word for path in paths for word in ("--lora", path)]
    assert run(["generate", "--prompt", "a", *options]) == 0
    assert [call[3] for call in calls if call[0] == "lora"] == names


def test_a_batch_has_them_too_before_its_first_video(calls):
    Path("p.txt").write_text("a\n")
    run(["generate", "--prompts", "p.txt", "--lora", "a.safetensors:0.5"])
    moments = [call[0] for call in calls]
    assert moments.index("setup") < moments.index("lora") < moments.index("batch")
