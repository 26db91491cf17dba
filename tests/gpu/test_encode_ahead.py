"""Beside a GPU the next prompt is encoded on the CPU meanwhile, and no video differs by a bit."""

import numpy as np
import pytest
from support.checkpoints import SIZE

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.callbacks import EncodeAhead
from tests.gpu import requires_gpu

pytestmark = [pytest.mark.gpu, requires_gpu]
PROMPTS = ["a red circle", "a blue square", "a green circle", "a red square"]


def test_videos_of_prompts_that_were_encoded_ahead_are_those_that_are_made_alone(
    checkpoint, tmp_path
):
    with VideoGenerator.from_pretrained(checkpoint("t2v")) as generator:
        batch = generator.generate_videos(PROMPTS, output_path=tmp_path, seed=3, **SIZE)
        together = [video.frames for video in batch]
        (ahead,) = (c for c in generator._fabric._callbacks if isinstance(c, EncodeAhead))
        assert ahead.num_used == len(PROMPTS) - 1
        for index, prompt in enumerate(PROMPTS):
            alone = generator.generate_video(prompt, save_video=False, seed=3 + index, **SIZE)
            assert np.array_equal(together[index], alone.frames)
