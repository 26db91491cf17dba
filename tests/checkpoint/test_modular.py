"""A modular pipeline is loaded from its files, wherever its index says that they lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from support.recipes import RECIPES
from support.recipes.runs import Media, place, placed, run_ours, run_plain, write_media

from fastvideo_lightning import VideoModule
from fastvideo_lightning.checkpoint import hub
from fastvideo_lightning.checkpoint.folder import MODULAR_INDEX, CheckpointError
from fastvideo_lightning.checkpoint.pipeline import open_checkpoint

MODULAR = sorted(
    name for name in RECIPES if issubclass(getattr(diffusers, name), diffusers.ModularPipeline)
)
TYPICAL = "WanModularPipeline"


def save(name: str, folder: Path) -> Path:
    RECIPES[name].build().save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(TYPICAL, tmp_path / "model")


def complete(pipeline: Any, built: Any, folder: Path) -> None:
    """Give a pipeline what no folder has: guiders, and settings of the recipe's own."""
    parts = {name: part for name, part in built.components.items() if not (folder / name).is_dir()}
    pipeline.update_components(**parts)
    if hasattr(pipeline, "disable_safety_checker"):
        pipeline.disable_safety_checker()


@pytest.mark.parametrize(
    "name",
    [n if n == TYPICAL else pytest.param(n, marks=pytest.mark.exhaustive) for n in MODULAR],
)
def test_its_video_is_that_of_diffusers_and_its_weights_stream_from_their_files(
    name: str, media: Media, tmp_path: Path
) -> None:
    recipe, folder = RECIPES[name], save(name, tmp_path / "model")
    diffusers_own = getattr(diffusers, name).from_pretrained(str(folder))
    diffusers_own.load_components(torch_dtype=torch.float32)
    module = VideoModule.from_pretrained(folder, device_type="cpu")
    complete(diffusers_own, recipe.build(), folder)
    complete(module.pipeline, recipe.build(), folder)
    plain = run_plain(diffusers_own, recipe, media)
    weights = {fqn for fqn, weight in module.named_parameters() if weight.is_meta}
    assert weights
    assert weights <= module.weight_sources.keys()
    placements = place(module)
    with placed(module, placements):
        assert run_ours(module, recipe, media).equals(plain)


def change(folder: Path, name: str, **location: Any) -> None:
    index = folder / MODULAR_INDEX
    entries = json.loads(index.read_text())
    entries[name][2].update(location)
    index.write_text(json.dumps(entries))


def test_a_component_may_lie_in_another_folder(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(folder / "transformer", elsewhere / "denoiser")
    change(
        folder, "transformer", pretrained_model_name_or_path=str(elsewhere), subfolder="denoiser"
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.folder_of("transformer") == elsewhere / "denoiser"
    module = VideoModule.from_pretrained(folder)
    (path,) = {s.path for n, s in module.weight_sources.items() if n.startswith("transformer.")}
    assert path is not None
    assert path.is_relative_to(elsewhere)


def test_a_folder_beside_the_index_comes_before_a_hub_id(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "download_part", lambda *_, **__: pytest.fail("asked the hub"))
    change(folder, "vae", pretrained_model_name_or_path="some/model", revision="main")
    assert open_checkpoint(folder).folder_of("vae") == folder / "vae"


def test_what_only_the_hub_has_is_downloaded(folder: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.move(folder / "vae", tmp_path / "vae")
    change(folder, "vae", pretrained_model_name_or_path="some/model", revision="main")
    asked = []

    def download(*where: str, **options: str) -> Path:
        asked.append((*where, options["revision"]))
        return tmp_path / "vae"

    monkeypatch.setattr("fastvideo_lightning.checkpoint.modular.download_part", download)
    assert open_checkpoint(folder).folder_of("vae") == tmp_path / "vae"
    assert asked == [("some/model", "vae", "main")]


def test_one_that_is_given_comes_first(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "vae", tmp_path / "own")
    checkpoint = open_checkpoint(folder, component={"vae": tmp_path / "own"})
    assert checkpoint.folder_of("vae") == tmp_path / "own"


def no_class(entries: dict[str, Any]) -> None:
    entries["_class_name"] = 3


def unknown_class(entries: dict[str, Any]) -> None:
    entries["_class_name"] = "os"


def climbs_out(entries: dict[str, Any]) -> None:
    entries["vae"][2].update(subfolder="../..", pretrained_model_name_or_path="/nowhere")


def number(entries: dict[str, Any]) -> None:
    entries["vae"][2]["subfolder"] = 7


def foreign(entries: dict[str, Any]) -> None:
    entries["vae"][:2] = ["os", "system"]


@pytest.mark.parametrize("damage", [no_class, unknown_class, climbs_out, number, foreign])
def test_a_damaged_index_is_named(folder: Path, damage: Callable[[dict[str, Any]], None]) -> None:
    index = folder / MODULAR_INDEX
    entries = json.loads(index.read_text())
    damage(entries)
    index.write_text(json.dumps(entries))
    if damage is climbs_out:
        shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match=str(folder)):
        VideoModule.from_pretrained(folder)


def test_a_component_that_is_nowhere_is_named_with_what_to_type(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match=r"Missing component: .*vae.*component=\{'vae': FOLD"):
        open_checkpoint(folder)
