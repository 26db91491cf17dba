"""VideoLogger with TensorBoard's own logger: what it was given stands in the event file."""

import lightning as L
import pytest
from checkpoints import PROMPT, SIZE

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, VideoModule
from fastvideo_lightning.callbacks import VideoLogger

pytest.importorskip("tensorboard", reason="needs tensorboard")


def test_the_numbers_of_every_video_are_in_tensorboards_file(checkpoint, tmp_path) -> None:
    from lightning.fabric.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fabric = L.Fabric(
        accelerator="cpu",
        devices=1,
        strategy=HostResidentStrategy(),
        loggers=logger,
        callbacks=[VideoLogger(log_videos=False)],
    )
    fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(checkpoint("t2v")))
    PredictLoop(fabric).run(module, PromptDataset([PROMPT] * 2, seed=7, **SIZE))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    assert [(event.step, event.value) for event in events.Scalars("seed")] == [(0, 7), (1, 8)]
    assert all(event.value > 0 for event in events.Scalars("generation_time_s"))
