import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from support import single_files
from support.checkpoints import PROMPT
from support.recipes import RECIPES
from support.references import SEED, kind_of, load_plain, make_plain_frames, sampling_of
from torch import nn
from transformers import UMT5EncoderModel

from fastvideo_lightning import CheckpointError, PromptDataset, VideoGenerator, VideoModule
from fastvideo_lightning.pack import layout, pack, plan_packing

FindCheckpoint = Callable[[str], Path]
GPU = torch.device("cuda")
AUTO = {"default": torch.bfloat16, "vae": torch.float32}


@pytest.fixture(scope="module")
def packed(
    checkpoint: FindCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a packed checkpoint by kind and dtype; leave it as it is."""
    root = tmp_path_factory.mktemp("packed")

    def find(kind: str, dtype: str = "auto") -> Path:
        folder = root / f"{kind}-{dtype}"
        return folder if folder.exists() else pack(checkpoint(kind), folder, dtype=dtype)

    return find


@pytest.fixture
def source(checkpoint: FindCheckpoint, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return Path(shutil.copytree(checkpoint("t2v"), tmp_path / "source"))


def models_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    return {n: c for n, c in pipeline.components.items() if isinstance(c, nn.Module)}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["t2v", "two_experts", "ti2v", "i2v_clip"])
@pytest.mark.parametrize("dtype", ["auto", "fp16"])
def test_plain_diffusers_loads_what_it_makes_of_the_source(
    kind: str, dtype: str, checkpoint: FindCheckpoint, packed: Callable[..., Path]
) -> None:
    dtypes = AUTO if dtype == "auto" else torch.float16
    expected = models_of(DiffusionPipeline.from_pretrained(checkpoint(kind), dtype=dtypes))
    found = models_of(DiffusionPipeline.from_pretrained(packed(kind, dtype), dtype=dtypes))
    assert found.keys() == expected.keys()
    for name, model in expected.items():
        weights = found[name].state_dict()
        assert weights.keys() == model.state_dict().keys()
        for fqn, weight in model.state_dict().items():
            assert weights[fqn].dtype == weight.dtype, f"{name}.{fqn}"
            assert torch.equal(weights[fqn], weight), f"{name}.{fqn}"


@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp32"])
def test_every_weight_lies_in_the_dtype_that_the_source_says_it_runs_in(
    dtype: str, checkpoint: FindCheckpoint, packed: Callable[..., Path]
) -> None:
    before = VideoModule.from_pretrained(checkpoint("i2v_clip"), dtype=dtype).weight_sources
    after = VideoModule.from_pretrained(packed("i2v_clip", dtype), dtype=dtype).weight_sources
    assert after.keys() == before.keys()
    for fqn, old in before.items():
        new = after[fqn]
        assert new.stored_dtype == old.dtype_on(GPU) == new.dtype_on(GPU), fqn
        there, here = (torch.empty(s.shape, dtype=new.stored_dtype) for s in (old, new))
        old.read_into(there)
        new.read_into(here)
        assert torch.equal(there, here), fqn


def test_diffusers_hears_of_no_unexpected_key_and_transformers_only_of_padding(
    packed: Callable[..., Path],
) -> None:
    folder = packed("t2v")
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    assert (folder / index).exists(), "without padding this would show nothing"
    _, report = WanTransformer3DModel.from_pretrained(
        folder / "transformer", output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    _, report = UMT5EncoderModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    assert all(key.startswith("__padding__.") for key in report["unexpected_keys"])
    assert not report["missing_keys"]


def test_plain_transformers_does_not_cast_back(packed: Callable[..., Path]) -> None:
    for dtype, expected in (("auto", torch.bfloat16), ("fp16", torch.float16)):
        model = UMT5EncoderModel.from_pretrained(packed("t2v", dtype) / "text_encoder")
        assert model.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == expected
        assert model.shared.weight is model.encoder.embed_tokens.weight


@pytest.mark.parametrize("case", ["t2v", "i2v_clip"])
def test_frames_are_those_of_plain_diffusers_and_of_the_source(
    case: str,
    checkpoint: FindCheckpoint,
    packed: Callable[..., Path],
    image: Path,
    last_image: Path,
) -> None:
    """Bit for bit; the source's weights are moved to aligned addresses, where a pack has them.

    See Note [Addresses and last bits] in `offload/tensors/layout.py`.
    """
    folder = packed(kind_of(case), "fp32")
    sampling = sampling_of(case, {"image": image, "last_image": last_image})
    with VideoGenerator.from_pretrained(folder, dtype="fp32", accelerator="cpu") as generator:
        frames = generator.generate_video(PROMPT, save_video=False, seed=SEED, **sampling).frames
    assert np.array_equal(frames, make_plain_frames(folder, sampling))
    module = VideoModule.from_pretrained(checkpoint(kind_of(case)), dtype="fp32")
    module.on_predict_start()
    for weight in module.parameters():
        weight.data = weight.data.clone()
        assert weight.data_ptr() % 64 == 0
    batch = PromptDataset([PROMPT], seed=SEED, **sampling)[0]
    assert np.array_equal(frames, module.predict_step(batch, 0).frames)


def test_everything_but_weights_and_recorded_dtypes_is_copied_as_it_is(source, tmp_path) -> None:
    (source / "README.md").write_text("A model.")
    (source / "sampling.json").write_text("{}")
    (source / "assets").mkdir()
    (source / "assets" / "example.png").write_bytes(b"png")
    (source / ".cache").mkdir()
    (source / ".cache" / "lock").touch()
    (source / "text_encoder" / "model.fp16.safetensors").write_bytes(b"another variant")
    before, after = contents(source), contents(pack(source, tmp_path / "packed"))
    added = {
        "packing.json",
        "text_encoder/model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.safetensors.index.json",
    }
    left_out = {".cache/lock", "text_encoder/model.fp16.safetensors"}
    assert after.keys() == before.keys() - left_out | added
    changed = {path for path in after.keys() & before.keys() if after[path] != before[path]}
    config = "text_encoder/config.json"
    assert {path for path in changed if not path.endswith(".safetensors")} == {config}
    old, new = json.loads(before[config]), json.loads(after[config])
    assert {**old, "dtype": "bfloat16"} == new


def test_a_component_that_its_library_transforms_is_written_from_its_tensors(
    source, tmp_path
) -> None:
    weights = source / "text_encoder" / "model.safetensors"
    expected = load_file(weights)
    torch.save(expected, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(CheckpointError, match="is a pickle.*allow_pickle=True"):
        pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    out = pack(source, tmp_path / "packed", allow_pickle=True)
    after = VideoModule.from_pretrained(out, dtype="bf16")
    assert not (tmp_path / "packed" / "text_encoder" / "pytorch_model.bin").exists()
    for name, weight in expected.items():
        stored = after.weight_sources[f"text_encoder.{name}"]
        assert torch.equal(stored.as_host_tensor(torch.bfloat16), weight.bfloat16())


def test_shards_and_a_variant_are_read_and_shards_are_written(
    checkpoint: FindCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(layout.plan_files.__kwdefaults__, "shard_bytes", 30_000)
    plain = load_plain(checkpoint("t2v"), expects_image=False)
    plain.save_pretrained(tmp_path / "source", variant="fp16", max_shard_size="20KB")
    out = pack(tmp_path / "source", tmp_path / "packed", dtype="fp32", variant="fp16")
    assert len(list((out / "transformer").glob("*-of-*.safetensors"))) > 1
    again = models_of(load_plain(out, expects_image=False))
    for name, model in models_of(plain).items():
        for fqn, weight in model.state_dict().items():
            assert torch.equal(again[name].state_dict()[fqn], weight), f"{name}.{fqn}"


KILLED = """
import os, signal, sys
from fastvideo_lightning.pack import plan_packing

packing = plan_packing(sys.argv[1], sys.argv[2])
seen = set()

def kill_in_the_second_file(path, size_bytes):
    seen.add(path)
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

packing.write(kill_in_the_second_file)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL, which only POSIX has")
def test_a_killed_run_goes_on_where_it_was(
    checkpoint: FindCheckpoint, packed: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    words = [sys.executable, "-c", KILLED, checkpoint("t2v"), out]
    root = Path(__file__).parent.parent.parent
    assert subprocess.run(words, check=False, cwd=root).returncode == -signal.SIGKILL
    assert not (out / "model_index.json").exists()
    done = list(out.rglob("*.safetensors"))
    assert len(done) == 1
    assert len(list(out.rglob("*.partial"))) == 1
    before = done[0].stat()
    packing = plan_packing(checkpoint("t2v"), out)
    told = []
    packing.write(lambda path, _: told.append(out / path))
    assert done[0].stat().st_ino == before.st_ino
    assert told
    assert done[0] not in told
    whole, again = contents(packed("t2v")), contents(out)
    del whole["packing.json"], again["packing.json"]
    assert again == whole


def test_an_interruption_leaves_nothing_half_written_under_any_name(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    def stop(path: Path, size_bytes: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "packed"
    with pytest.raises(KeyboardInterrupt):
        plan_packing(checkpoint("t2v"), out).write(stop)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["packing.json"]


def test_a_finished_pack_is_not_written_again_and_a_damaged_file_is(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    out = pack(checkpoint("t2v"), tmp_path / "packed")
    before = contents(out)
    path = out / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    told = set()
    plan_packing(checkpoint("t2v"), out).write(lambda path, _: told.add(out / path))
    assert told == {path}
    assert contents(out) == before


def test_the_same_files_installed_again_are_the_same_source(source, tmp_path) -> None:
    out = pack(source, tmp_path / "packed")
    before = contents(out)
    for path in source.rglob("*"):
        os.utime(path, (1, 1))
    assert pack(source, out) == out
    assert contents(out) == before


@pytest.mark.parametrize("changed", ["weights", "config", "dtype"])
def test_a_folder_packed_from_something_else_is_left_alone(source, tmp_path, changed) -> None:
    out = pack(source, tmp_path / "packed")
    before = contents(out)
    if changed == "weights":
        file = source / "transformer" / "diffusion_pytorch_model.safetensors"
        weights = {name: weight + 1 for name, weight in load_file(file).items()}
        save_file(weights, file)
    elif changed == "config":
        (source / "scheduler" / "scheduler_config.json").write_text("{}")
    dtype = "fp32" if changed == "dtype" else "auto"
    with pytest.raises(FileExistsError, match=r"packed holds a pack of .*source with dtype auto"):
        pack(source, out, dtype=dtype)
    assert contents(out) == before


def test_a_pack_can_be_packed(packed: Callable[..., Path], tmp_path: Path) -> None:
    first, second = packed("t2v"), pack(packed("t2v"), tmp_path / "again")
    before, after = contents(first), contents(second)
    del before["packing.json"], after["packing.json"]
    assert after == before


def test_a_file_and_a_folder_elsewhere_are_packed_with_the_rest(
    checkpoint: FindCheckpoint, packed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = checkpoint("t2v")
    file = single_files.write_wan(folder, tmp_path / "wan.safetensors")
    vae = shutil.copytree(folder / "vae", tmp_path / "own vae")
    out = pack(file, tmp_path / "out", base=folder, component={"vae": vae})
    assert models_are_equal(out, packed("t2v"))
    assert (out / "vae" / "config.json").is_file()


def test_a_modular_pipeline_is_packed_and_loaded_again(tmp_path: Path) -> None:
    source = tmp_path / "modular"
    recipe = RECIPES["WanModularPipeline"]
    recipe.build().save_pretrained(str(source), overwrite_modular_index=True)
    out = pack(source, tmp_path / "out", dtype="fp32")
    shutil.rmtree(source)
    module, plain = VideoModule.from_pretrained(out), recipe.build()
    for name in ("transformer", "text_encoder", "vae"):
        for fqn, weight in getattr(plain, name).named_parameters():
            found = module.weight_sources[f"{name}.{fqn}"]
            assert found.path is not None
            assert found.path.is_relative_to(out)
            assert torch.equal(found.as_host_tensor(weight.dtype), weight)


def models_are_equal(one: Path, other: Path) -> bool:
    found, expected = (
        models_of(DiffusionPipeline.from_pretrained(folder, dtype=AUTO)) for folder in (one, other)
    )
    return all(
        torch.equal(weight, found[name].state_dict()[fqn])
        for name, model in expected.items()
        for fqn, weight in model.state_dict().items()
    )
