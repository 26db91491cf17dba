"""Pipelines that make a picture: one frame, written as PNG."""

import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from PIL import Image
from support.recipes import PICTURES, PROMPT, RECIPES

from fastvideo_lightning import (
    HostResidentStrategy,
    PredictLoop,
    PromptDataset,
    SamplingParams,
    VideoGenerator,
    VideoModule,
)
from fastvideo_lightning.callbacks import LayerwiseOffload, VideoWriter
from fastvideo_lightning.modules.catalog import find_image_pipelines
from fastvideo_lightning.output.video import GeneratedVideo


@pytest.mark.parametrize("name", PICTURES)
def test_a_run_writes_the_picture_as_png_under_its_prompt(name: str, tmp_path: Path) -> None:
    recipe = PICTURES[name]
    module = VideoModule.from_pipeline(recipe.build())
    fabric = L.Fabric(
        accelerator="cpu",
        devices=1,
        strategy=HostResidentStrategy(),
        callbacks=[LayerwiseOffload("transformer"), VideoWriter(tmp_path)],
    )
    fabric.launch()
    prompts = PromptDataset([PROMPT, PROMPT], seed=7, **recipe.ours({}))
    videos = PredictLoop(fabric).run(fabric.setup(module), prompts, return_predictions=True)
    fabric.call("teardown")
    assert videos is not None
    names = ["a_red_circle_moves_right.png", "a_red_circle_moves_right_1.png"]
    assert [video.video_path.name for video in videos] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert videos[0].frames.shape == (1, 32, 32, 3)
    assert videos[0].summary.startswith("32x32, one frame, seed 7: made in ")
    assert np.array_equal(np.asarray(Image.open(videos[0].video_path)), videos[0].frames[0])


def test_a_batch_of_pictures_is_a_batch_of_png(tmp_path: Path) -> None:
    recipe = PICTURES["FluxPipeline"]
    module = VideoModule.from_pipeline(recipe.build())
    with VideoGenerator(module, accelerator="cpu", progress=False) as generator:
        made = list(
            generator.generate_videos([PROMPT], output_path=tmp_path, seed=7, **recipe.ours({}))
        )
        again = generator.generate_videos([PROMPT], output_path=tmp_path, seed=7, **recipe.ours({}))
        assert again.num_skipped == 1
        again.close()
    path = tmp_path / "a_red_circle_moves_right.png"
    assert {left.name for left in tmp_path.iterdir()} == {path.name, "manifest.jsonl"}
    assert np.array_equal(np.asarray(Image.open(path)), made[0].frames[0])


def test_what_a_pipeline_makes_is_told_by_its_output() -> None:
    assert PICTURES.keys() <= find_image_pipelines().keys()
    for name, suffix in (("FluxPipeline", ".png"), ("LTXPipeline", ".mp4")):
        module = VideoModule.from_pipeline((PICTURES | RECIPES)[name].build())
        assert module.file_suffix == suffix


@pytest.mark.parametrize(("name", "told"), [("FluxPipeline", True), ("LTXPipeline", False)])
def test_frames_per_second_of_a_picture_are_told_to_have_no_effect(name: str, told: bool) -> None:
    module = VideoModule.from_pipeline((PICTURES | RECIPES)[name].build())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module.resolve_sampling(SamplingParams(fps=8))
    assert any("fps has no effect" in str(each.message) for each in said) == told


def test_several_frames_are_no_picture(tmp_path: Path) -> None:
    video = GeneratedVideo(np.zeros((2, 8, 8, 3), np.uint8), "a", seed=1, fps=8)
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        video.save(tmp_path / "a.png")
