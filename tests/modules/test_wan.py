import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import checkpoints

from fastvideo_lightning import CheckpointError, GeneratedVideo, SamplingParams, VideoModule
from fastvideo_lightning.modules import WanModule
from fastvideo_lightning.modules.media import load_rgb
from fastvideo_lightning.modules.wan import wan_defaults

FindCheckpoint = Callable[[str], Path]
Build = Callable[[str], VideoModule]


@pytest.fixture(scope="module")
def build(checkpoint: FindCheckpoint) -> Build:
    made: dict[str, VideoModule] = {}

    def find(kind: str) -> VideoModule:
        if kind not in made:
            made[kind] = VideoModule.from_pretrained(checkpoint(kind))
        return made[kind]

    return find


def resolve(module: VideoModule, **sampling: Any) -> SamplingParams:
    return module.resolve_sampling(SamplingParams(**sampling))


@pytest.mark.parametrize("kind", checkpoints.WRITERS)
def test_every_kind_is_the_wan_family(build: Build, kind: str) -> None:
    assert type(build(kind)) is WanModule


def test_roles_name_only_what_is_there(build: Build) -> None:
    two, clip = build("two_experts"), build("i2v_clip")
    assert two.denoisers == ("transformer", "transformer_2")
    assert two.image_encoders == ()
    assert clip.denoisers == ("transformer",)
    assert clip.image_encoders == ("image_encoder",)
    assert clip.text_encoders == ("text_encoder",)
    assert clip.vaes == ("vae",)


CARD = {"takes_image": False, "expands_timesteps": False, "has_two_experts": False}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_heads": 12}, (480, 832, 81, 16, 50, 3.0, None)),
        ({}, (720, 1280, 81, 16, 50, 5.0, None)),
        ({"takes_image": True}, (480, 832, 81, 16, 50, 5.0, None)),
        ({"takes_image": True, "flow_shift": 5.0}, (720, 1280, 81, 16, 50, 5.0, None)),
        ({"has_two_experts": True}, (720, 1280, 81, 16, 40, 4.0, 3.0)),
        ({"has_two_experts": True, "takes_image": True}, (480, 832, 81, 16, 40, 3.5, 3.5)),
        ({"expands_timesteps": True, "num_heads": 24}, (704, 1280, 121, 24, 50, 5.0, None)),
    ],
)
def test_defaults_are_those_of_the_model_cards(config: Any, expected: tuple[Any, ...]) -> None:
    found = wan_defaults(**{**CARD, "num_heads": 40, "flow_shift": 3.0, **config})
    sizes = (found.height, found.width, found.num_frames, found.fps, found.num_inference_steps)
    assert (*sizes, found.guidance_scale, found.guidance_scale_2) == expected


def test_what_the_user_gives_wins(build: Build) -> None:
    params = resolve(build("two_experts"), **checkpoints.SIZE, guidance_scale=6.0, seed=3)
    assert (params.height, params.guidance_scale, params.seed) == (32, 6.0, 3)
    assert params.guidance_scale_2 is None, "as in diffusers, one scale counts for both experts"


@pytest.mark.parametrize(
    ("kind", "sampling", "nearest"),
    [
        ("t2v", {"height": 100}, "height=96"),
        ("t2v", {"height": 107}, "height=112"),
        ("t2v", {"width": 1}, "width=16"),
        ("t2v", {"width": 10**6}, "width=512"),
        ("t2v", {"num_frames": 6}, "num_frames=5"),
        ("t2v", {"num_frames": 8}, "num_frames=9"),
        ("t2v", {"num_frames": 10**6}, "num_frames=125"),
        ("ti2v", {"height": 48}, "height=64"),
        ("ti2v", {"width": 1280 + 16}, "width=1024"),
        ("t2v", {"num_inference_steps": 5000}, "num_inference_steps=1000"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_nearest(
    build: Build, kind: str, sampling: dict[str, int], nearest: str
) -> None:
    (value,) = sampling.values()
    with pytest.raises(ValueError, match=f"got {value}.*{nearest}"):
        resolve(build(kind), **{**checkpoints.SIZE, "width": 64, **sampling})


@pytest.mark.parametrize("name", ["height", "width", "num_frames", "num_inference_steps"])
@pytest.mark.parametrize("value", [0, -16])
def test_zero_and_negative_values_are_refused(build: Build, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        resolve(build("t2v"), **{**checkpoints.SIZE, name: value})


@pytest.mark.parametrize("kind", ["i2v", "i2v_clip", "first_last"])
def test_missing_image(build: Build, kind: str) -> None:
    with pytest.raises(ValueError, match="image_path is missing"):
        resolve(build(kind), **checkpoints.SIZE)


@pytest.mark.parametrize("kind", ["t2v", "two_experts"])
def test_image_for_a_text_model(build: Build, kind: str, image: Path) -> None:
    with pytest.raises(ValueError, match="takes no image"):
        resolve(build(kind), **checkpoints.SIZE, image_path=image)


def test_ti2v_takes_both(build: Build, image: Path) -> None:
    size = {**checkpoints.SIZE, "width": 64}
    assert resolve(build("ti2v"), **size).image_path is None
    assert resolve(build("ti2v"), **size, image_path=image).image_path == image


@pytest.mark.parametrize("kind", ["t2v", "ti2v", "i2v_clip"])
def test_last_image_where_none_is_taken(build: Build, image: Path, kind: str) -> None:
    images = {"last_image_path": image} | ({"image_path": image} if kind != "t2v" else {})
    with pytest.raises(ValueError, match="last_image_path"):
        resolve(build(kind), **{**checkpoints.SIZE, "width": 64}, **images)


def test_image_that_is_not_there_or_no_image(build: Build, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        resolve(build("i2v"), **checkpoints.SIZE, image_path=tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"text\.png.* no image"):
        resolve(build("i2v"), **checkpoints.SIZE, image_path=tmp_path / "text.png")


def test_second_guidance_needs_a_second_expert(build: Build) -> None:
    with pytest.raises(ValueError, match="two experts"):
        resolve(build("t2v"), **checkpoints.SIZE, guidance_scale_2=2.0)


def test_without_a_size_the_image_keeps_its_shape(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("i2v"), tmp_path / "copy"))
    (folder / "sampling.json").write_text(json.dumps({"height": 256, "width": 256}))
    tall = checkpoints.write_image(tmp_path / "tall.png", size=(50, 100))
    params = resolve(VideoModule.from_pretrained(folder), num_frames=5, image_path=tall)
    assert (params.height, params.width) == (352, 176)


def test_sampling_json_beside_the_weights_wins_over_the_family(
    checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("t2v"), tmp_path / "copy"))
    content = {"height": 64, "width": 64, "num_frames": 17, "guidance_scale": 2.0}
    trained = {"num_frames": [9, 33], "height": [48, 96], "width": [48, 96]}
    (folder / "sampling.json").write_text(json.dumps({**content, "trained": trained}))
    module = VideoModule.from_pretrained(folder)
    defaults = module.sampling_defaults.given()
    assert {name: defaults[name] for name in content} == content
    assert defaults["fps"] == 16
    with pytest.warns(UserWarning, match="height=128 is outside .*48 to 96"):
        resolved = resolve(module, height=128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.resolve_sampling(resolved) is resolved  # said once

    (folder / "sampling.json").write_text('{"hight": 64}')
    with pytest.raises(CheckpointError, match="hight"):
        VideoModule.from_pretrained(folder)


@pytest.mark.parametrize("length", [513, 100_000])
def test_more_text_than_the_model_reads_is_refused_with_the_most(
    checkpoint: FindCheckpoint, length: int
) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    with pytest.raises(ValueError, match=f"1 to 512, got {length}.*max_sequence_length=512"):
        resolve(module, **{**checkpoints.SIZE, "max_sequence_length": length})


def test_further_arguments_reach_the_pipelines_call(build: Build) -> None:
    further = {"num_videos_per_prompt": 1}
    params = resolve(build("t2v"), height=64, width=64, pipeline_arguments=further)
    assert build("t2v").call_arguments(params)["num_videos_per_prompt"] == 1


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"num_video_per_prompt": 1}, r"takes no num_video_per_prompt\. Did you mean num_videos_"),
        ({"height": 64}, r"height cannot be in pipeline_arguments\. Pass height=\.\.\."),
        ({"image": "image.png"}, "takes no image, got image in pipeline_arguments"),
    ],
)
def test_a_further_argument_that_the_call_does_not_take_is_refused(
    build: Build, further: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(build("t2v"), height=64, width=64, pipeline_arguments=further)


def test_a_video_for_a_model_that_takes_none_is_refused(build: Build, tmp_path: Path) -> None:
    video = GeneratedVideo(np.zeros((5, 16, 16, 3), np.uint8), "x", seed=0, fps=8)
    path = video.save(tmp_path / "video.mp4")
    with pytest.raises(ValueError, match="This model takes no video, got video_path="):
        resolve(build("t2v"), height=64, width=64, video_path=str(path))


@pytest.mark.parametrize("kind", ["i2v", "i2v_clip", "first_last", "ti2v"])
def test_a_picture_in_memory_makes_what_its_file_does(build: Build, image: Path, kind: str) -> None:
    module, size = build(kind), {**checkpoints.SIZE, "width": 64}
    module.check_placement()
    names = ["image", "last_image"] if kind == "first_last" else ["image"]
    call = {"prompt": "a dog", "seed": 3, **size}
    by_path = module.predict_step({**call, **{f"{name}_path": image for name in names}})
    picture = load_rgb(image)
    by_object = module.predict_step({**call, "pipeline_arguments": dict.fromkeys(names, picture)})
    assert np.array_equal(by_path.frames, by_object.frames)


def test_a_picture_in_memory_counts_where_none_is_taken_and_for_the_size(
    build: Build, checkpoint: FindCheckpoint, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (50, 100))
    further = {"pipeline_arguments": {"image": picture}}
    with pytest.raises(ValueError, match="takes no image, got image in pipeline_arguments"):
        resolve(build("t2v"), **checkpoints.SIZE, **further)
    last = {"pipeline_arguments": {"image": picture, "last_image": picture}}
    with pytest.raises(ValueError, match="got last_image in pipeline_arguments"):
        resolve(build("i2v_clip"), **checkpoints.SIZE, **last)
    folder = Path(shutil.copytree(checkpoint("i2v"), tmp_path / "copy"))
    (folder / "sampling.json").write_text(json.dumps({"height": 256, "width": 256}))
    module = VideoModule.from_pretrained(folder)
    for given in (picture, [picture], torch.zeros(3, 100, 50), np.zeros((100, 50, 3))):
        params = resolve(module, num_frames=5, pipeline_arguments={"image": given})
        assert (params.height, params.width) == (352, 176)
