import json
import pickle

import pytest
from support.checkpoints import weights_of

from fastvideo_lightning import CheckpointError, VideoModule
from fastvideo_lightning.cli.app import run

RUN = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\n"


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def ran(broken):
    """Files that code of the checkpoint has left."""
    return lambda: [path.name for path in broken.rglob("*.ran")]


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_pickle_beside_the_weights_is_not_opened(broken, ran):
    for component in ("transformer", "text_encoder", "vae"):
        folder = broken / component
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "x.pkl"):
            (folder / name).write_bytes(pickle.dumps(Bomb(folder / "pickle.ran"), protocol=2))
    module = VideoModule.from_pretrained(broken, dtype="fp32")
    module.on_predict_start()
    assert ran() == []


@pytest.mark.parametrize(
    ("component", "name"),
    [("transformer", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")],
)
def test_pickled_weights_are_refused_unless_asked_for(broken, ran, component, name):
    weights_of(broken, component).unlink()
    bomb = broken / component / name
    bomb.write_bytes(pickle.dumps(Bomb(broken / "pickle.ran"), protocol=2))
    with pytest.raises(CheckpointError, match=f"{name} is a pickle.*allow_pickle=True"):
        VideoModule.from_pretrained(broken)
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        VideoModule.from_pretrained(broken, allow_pickle=True)  # torch takes tensors only
    assert ran() == []


def test_the_command_says_what_to_type_about_a_pickle(broken, capsys):
    weights_of(broken).rename(broken / "transformer" / "diffusion_pytorch_model.bin")
    words = ["--model", str(broken), "--prompt", "a", "--accelerator", "cpu"]
    assert run(["generate", *words, "--no-save-video"]) == 2
    assert "Pass --allow-pickle if you trust it" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["my_model", "os", "antigravity"])
def test_a_component_from_elsewhere_is_refused_and_nothing_of_it_is_run(
    broken, ran, monkeypatch, library
):
    (broken / "transformer" / f"{library}.py").write_text(RUN + "class Model: pass\n")
    monkeypatch.syspath_prepend(broken / "transformer")
    edit(broken / "model_index.json", transformer=[library, "Model"])
    with pytest.raises(CheckpointError, match=rf"{library}\.Model.* never run"):
        VideoModule.from_pretrained(broken)
    assert ran() == []


def test_a_pipeline_that_is_a_file_of_the_checkpoint_is_refused(broken, ran):
    (broken / "pipeline.py").write_text(RUN)
    edit(broken / "model_index.json", _class_name=["pipeline.py", "MyPipeline"])
    with pytest.raises(CheckpointError, match="must name a diffusers pipeline"):
        VideoModule.from_pretrained(broken)
    assert ran() == []


@pytest.mark.parametrize(
    ("component", "config", "auto_class"),
    [
        ("text_encoder", "config.json", "AutoModel"),
        ("tokenizer", "tokenizer_config.json", "AutoTokenizer"),
    ],
)
def test_a_config_with_remote_code_is_refused(broken, ran, component, config, auto_class):
    (broken / component / "my_model.py").write_text(RUN)
    edit(broken / component / config, auto_map={auto_class: "my_model.Model"})
    edit(broken / "model_index.json", **{component: ["transformers", auto_class]})
    with pytest.raises(CheckpointError, match=f"{config} asks for code of its own"):
        VideoModule.from_pretrained(broken)
    assert ran() == []


def test_remote_code_of_a_class_that_is_known_is_not_run(broken, ran):
    (broken / "text_encoder" / "my_model.py").write_text(RUN)
    config = broken / "text_encoder" / "config.json"
    edit(config, auto_map={"AutoModel": "my_model.Model", "AutoConfig": "my_model.Config"})
    VideoModule.from_pretrained(broken).on_predict_start()
    assert ran() == []
