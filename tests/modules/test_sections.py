"""Steps of a video that is made section by section."""

from typing import Any

import pytest
from support.recipes import RECIPES
from support.recipes.runs import run_ours, write_media

from fastvideo_lightning import VideoModule


@pytest.mark.parametrize(
    ("name", "num_sections"),
    [("HunyuanVideoPipeline", 1), ("HunyuanVideoFramepackPipeline", 9)],
)
def test_each_section_adds_its_steps_and_every_step_that_starts_ends(
    name: str, num_sections: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = record_moments(name, tmp_path, monkeypatch)
    check_moments(moments, 2 * num_sections)  # two steps each


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [
        ("TextToVideoZeroPipeline", 1 + 1 + 3),  # of 4, in passes that overlap
        ("TextToVideoZeroSDXLPipeline", 1 + 1 + 3),
        ("VideoToVideoSDPipeline", 1),  # of 2: as strong as the call is by default
    ],
)
def test_steps_that_are_more_or_fewer_than_asked_for_are_counted_as_they_are(
    name: str, num_steps: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_moments(record_moments(name, tmp_path, monkeypatch), num_steps)


def record_moments(
    name: str, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, int, int]]:
    recipe = RECIPES[name]
    module = VideoModule.from_pipeline(recipe.build())
    moments: list[tuple[str, int, int]] = []
    monkeypatch.setattr(module, "_announce", lambda *moment, **_: moments.append(moment))
    run_ours(module, recipe, write_media(folder))
    return moments


def check_moments(moments: list[tuple[str, int, int]], total: int) -> None:
    """Check that every step that starts ends, and that the last one is known to be the last."""
    starts = [step for moment, step, _ in moments if moment == "on_denoise_step_start"]
    ends = [step for moment, step, _ in moments if moment == "on_denoise_step_end"]
    assert starts == ends == list(range(total))
    assert moments[-1] == ("on_denoise_step_end", total - 1, total)
    assert all(step < num_steps for _, step, num_steps in moments)
