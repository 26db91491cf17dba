"""The bundled model shows what it is asked for, and is what it claims to be."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from support.shape_reader import Reading, read_video

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "fastvideo_lightning" / "assets" / "tiny-shapes"
sys.path.insert(0, str(ROOT / "examples"))
from tiny_shapes.captions import canonical_caption, make_tokenizer, paraphrase  # noqa: E402
from tiny_shapes.checkpoint import sampling_defaults  # noqa: E402
from tiny_shapes.scenes import HELD_OUT_RULE, HELD_OUT_SCENES, SCENES  # noqa: E402

SETTINGS = json.loads((ASSETS / "sampling.json").read_text())
FIRST_SEED = 1024
# Frames, height, width, and how many held-out scenes to make of each.
OTHER_SIZES = (
    *((9, 48, 48, 6), (33, 48, 48, 3), (9, 96, 96, 3), (17, 48, 96, 4), (17, 96, 48, 4)),
    *((9, 48, 96, 3), (33, 64, 64, 2), (13, 64, 80, 3), (33, 96, 96, 2)),
)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = WanPipeline.from_pretrained(ASSETS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def made(pipeline, prompts, seeds, **changed):
    settings = {k: v for k, v in SETTINGS.items() if k not in ("fps", "trained")} | changed
    frames = pipeline(
        prompt=prompts,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
        **settings,
    ).frames
    return (frames * 255).round().astype(np.uint8)


def misread(pipeline, scenes, first_seed, **changed):
    wrong = []
    for start in range(0, len(scenes), 8):  # larger batches fall out of a CPU's cache
        part = scenes[start : start + 8]
        seeds = [first_seed + start + index for index in range(len(part))]
        videos = made(pipeline, [canonical_caption(scene) for scene in part], seeds, **changed)
        for scene, seed, video in zip(part, seeds, videos, strict=True):
            reading = read_video(video)
            if reading != scene:
                wrong.append((canonical_caption(scene), seed, reading))
    return wrong


@pytest.mark.parametrize(
    "every", [12, pytest.param(1, marks=[pytest.mark.exhaustive, pytest.mark.slow])]
)
def test_held_out_scenes_come_out_right_at_the_defaults(pipeline, every):
    assert misread(pipeline, HELD_OUT_SCENES[::every], FIRST_SEED) == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_held_out_scenes_come_out_right_at_other_sizes_and_lengths(pipeline):
    wrong, total = [], 0
    for index, (num_frames, height, width, count) in enumerate(OTHER_SIZES):
        scenes = HELD_OUT_SCENES[index % 5 :: len(HELD_OUT_SCENES) // count][:count]
        size = {"num_frames": num_frames, "height": height, "width": width}
        wrong += misread(pipeline, scenes, FIRST_SEED + 100 * index, **size)
        total += len(scenes)
    assert len(wrong) <= 0.1 * total, wrong


def test_plain_words_mean_the_same(pipeline):
    prompts = {
        "An orange square moving to the right.": ("orange", "square", "right", "black"),
        "the blue circle slides downwards over a grey background": (
            *("blue", "circle", "down", "gray"),
        ),
        "on a white background, a curious green triangle goes toward the top": (
            *("green", "triangle", "up", "white"),
        ),
    }
    videos = made(pipeline, list(prompts), range(FIRST_SEED, FIRST_SEED + len(prompts)))
    assert [read_video(video) for video in videos] == [Reading(*v) for v in prompts.values()]


def test_assets_are_at_most_12_mb():
    sizes = [path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(sizes) <= 12_000_000


def test_the_folder_says_what_the_training_script_says():
    assert sampling_defaults() == SETTINGS
    held_out = json.loads((ASSETS / "heldout.json").read_text())
    assert held_out["rule"] == HELD_OUT_RULE
    assert [tuple(scene) for scene in held_out["held_out"]] == list(HELD_OUT_SCENES)
    assert len(HELD_OUT_SCENES) == round(0.2 * len(SCENES))


def test_every_caption_is_in_the_vocabulary(pipeline):
    rng = random.Random(0)
    tokenizer = pipeline.tokenizer
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    for scene in SCENES:
        captions = [canonical_caption(scene)] + [paraphrase(scene, rng) for _ in range(20)]
        for ids in tokenizer(captions).input_ids:
            assert tokenizer.unk_token_id not in ids
