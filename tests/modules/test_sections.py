"""Steps of a video that is made section by section."""

from typing import Any

import pytest
from recipes import RECIPES
from recipes.runs import run_ours, write_media

from fastvideo_lightning import VideoModule


@pytest.mark.parametrize(
    ("name", "num_sections"),
    [("HunyuanVideoPipeline", 1), ("HunyuanVideoFramepackPipeline", 9)],
)
def test_each_section_adds_its_steps_and_every_step_that_starts_ends(
    name: str, num_sections: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPES[name]
    module = VideoModule.from_pipeline(recipe.build())
    moments: list[tuple[str, int, int]] = []
    monkeypatch.setattr(module, "_announce", lambda *moment: moments.append(moment))
    run_ours(module, recipe, write_media(tmp_path))

    total = 2 * num_sections  # two steps each
    starts = [step for moment, step, _ in moments if moment == "on_denoise_step_start"]
    ends = [step for moment, step, _ in moments if moment == "on_denoise_step_end"]
    assert starts == ends == list(range(total))
    assert moments[-1] == ("on_denoise_step_end", total - 1, total)
    assert all(step < num_steps for _, step, num_steps in moments)
