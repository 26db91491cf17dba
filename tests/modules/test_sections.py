"""Steps of a video that is made section by section."""

from typing import Any

import pytest
from checkpoints import write_image
from recipes import PROMPT, RECIPES

from fastvideo_lightning import PromptDataset, VideoModule


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
    media = {"image": write_image(tmp_path / "image.png", size=(32, 32))}
    module.predict_step(PromptDataset([PROMPT], seed=7, **recipe.ours(media))[0])

    total = 2 * num_sections  # two steps each
    starts = [step for moment, step, _ in moments if moment == "on_denoise_step_start"]
    ends = [step for moment, step, _ in moments if moment == "on_denoise_step_end"]
    assert starts == ends == list(range(total))
    assert moments[-1] == ("on_denoise_step_end", total - 1, total)
    assert all(step < num_steps for _, step, num_steps in moments)
