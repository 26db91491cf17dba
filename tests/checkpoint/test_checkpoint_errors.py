"""What a checkpoint that is not whole, or not there, is answered with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import weights_of
from support.recorders import read_errors
from support.references import load_plain

from fastvideo_lightning import CheckpointError, VideoModule
from fastvideo_lightning.checkpoint.pipeline import open_checkpoint
from fastvideo_lightning.checkpoint.weights import find_tensors, read_header
from fastvideo_lightning.cli.app import run

FindCheckpoint = Callable[[str], Path]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_file_is_named(broken: Path, keep: int) -> None:
    path = weights_of(broken)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=str(path)):
        VideoModule.from_pretrained(broken)


@pytest.mark.parametrize(
    "content",
    [b"not a model at all, but text", b"version https://git-lfs.github.com/spec/v1\n" * 3],
)
def test_foreign_file_is_named(broken: Path, content: bytes) -> None:
    path = weights_of(broken, "vae")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        VideoModule.from_pretrained(broken)
    assert ("git lfs pull" in str(caught.value)) == content.startswith(b"version")


def test_header_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(CheckpointError, match="'weight', which needs 16"):
        read_header(path)


def test_file_that_shrinks_after_its_header_was_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(1000)}, path)
    tensor = read_header(path)["weight"]
    path.write_bytes(path.read_bytes()[:200])
    from fastvideo_lightning.checkpoint.weights import StoredWeight

    source = StoredWeight(tensor, torch.float32, torch.float32)
    with pytest.raises(CheckpointError, match=str(path)):
        source.read_into(torch.empty(1000))


def test_missing_shard_is_named(checkpoint: FindCheckpoint, tmp_path: Path) -> None:
    plain = load_plain(checkpoint("t2v"), expects_image=False)
    plain.transformer.save_pretrained(tmp_path, max_shard_size="20KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        find_tensors(tmp_path, "diffusion_pytorch_model", None)


@pytest.mark.parametrize("component", ["vae", "tokenizer", "scheduler"])
def test_missing_component_is_named(broken: Path, component: str) -> None:
    shutil.rmtree(broken / component)
    with pytest.raises(CheckpointError, match=str(broken / component)):
        VideoModule.from_pretrained(broken)


def test_component_without_weights_is_named(broken: Path) -> None:
    weights_of(broken).unlink()
    with pytest.raises(CheckpointError, match=str(broken / "transformer")):
        VideoModule.from_pretrained(broken)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_where_only_a_variant_is_there_the_message_says_what_to_pass(
    checkpoint: FindCheckpoint,
    tmp_path: Path,
    shards: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = tmp_path / "model", tmp_path / "packed"
    plain = load_plain(checkpoint("t2v"), expects_image=False)
    plain.save_pretrained(folder, variant="fp16", **shards)
    with pytest.raises(CheckpointError, match="Pass variant='fp16'.$"):
        VideoModule.from_pretrained(folder)
    typed = ["generate", "--model", str(folder), "--prompt", "a", "--accelerator", "cpu"]
    for arguments in (typed, ["pack", str(folder), str(out)]):
        assert run(arguments) == 2
        assert "Pass --variant 'fp16'." in " ".join(read_errors(capsys))
    VideoModule.from_pretrained(folder, variant="fp16")


def test_weights_of_another_model_are_refused_by_name(broken: Path) -> None:
    path = weights_of(broken)
    tensors = load_file(path)
    tensors["proj_out.weight"] = torch.ones(3, 3)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"proj_out\.weight.*\[3, 3\]"):
        VideoModule.from_pretrained(broken)


def test_missing_weight_is_refused_by_name(broken: Path) -> None:
    path = weights_of(broken)
    tensors = load_file(path)
    del tensors["proj_out.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"proj_out\.weight"):
        VideoModule.from_pretrained(broken)


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        VideoModule.from_pretrained(tmp_path)


@pytest.mark.parametrize("path", ["no/such/folder", "./nowhere", "no such thing", "~/nowhere"])
def test_path_that_is_not_there(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="no hub id"):
        VideoModule.from_pretrained(path)


def test_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    def fail(*_: object, **__: object) -> None:  # stands in for a machine without a network
        raise OSError("no route to host")

    monkeypatch.setattr(DiffusionPipeline, "download", fail)
    with pytest.raises(CheckpointError, match="hf download Some-One/some-model"):
        VideoModule.from_pretrained("Some-One/some-model")


def test_unknown_pipeline_class_is_named(broken: Path) -> None:
    index = json.loads((broken / "model_index.json").read_text())
    index["_class_name"] = "NoSuchPipeline"
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="NoSuchPipeline"):
        VideoModule.from_pretrained(broken)


def test_unknown_dtype_and_variant_are_refused(checkpoint: FindCheckpoint) -> None:
    with pytest.raises(ValueError, match="dtype must be .*'int3'. Pass dtype='auto'"):
        VideoModule.from_pretrained(checkpoint("t2v"), dtype="int3")
    with pytest.raises(ValueError, match="variant 'fp8'"):
        VideoModule.from_pretrained(checkpoint("t2v"), variant="fp8")


def test_a_revision_of_a_folder_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="revision='main' is for models from the hub"):
        open_checkpoint(checkpoint("t2v"), revision="main")


@pytest.mark.parametrize("model", [3, None, b"folder"])
def test_a_model_that_is_no_text_is_refused(model: object) -> None:
    with pytest.raises(TypeError, match="model must be a folder or a hub id, got"):
        VideoModule.from_pretrained(model)


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_a_pipeline_whose_weights_are_kept_elsewhere_is_refused_by_name(
    checkpoint: FindCheckpoint, component: str
) -> None:
    from accelerate import cpu_offload

    pipeline = load_plain(checkpoint("t2v"), expects_image=False)
    cpu_offload(getattr(pipeline, component), execution_device=CPU, offload_buffers=True)
    module = VideoModule.from_pipeline(pipeline)
    with pytest.raises(RuntimeError, match=rf"{component}\..* is on the meta device and no check"):
        module.on_predict_start()
