"""VideoLogger with loggers of Lightning's own: what they were given stands in their files."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.fabric.loggers import CSVLogger, TensorBoardLogger
from PIL import Image, ImageSequence
from support.checkpoints import PROMPT, SIZE

from fastvideo_lightning import (
    GeneratedVideo,
    HostResidentStrategy,
    PredictLoop,
    PromptDataModule,
    PromptDataset,
    TrainerHostResidentStrategy,
    VideoModule,
)
from fastvideo_lightning.callbacks import TrainerCallback, VideoLogger

PROMPTS = [PROMPT, "a green square moves left"]


def read_events(folder: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(folder, size_guidance={"images": 0}).Reload()


def read_frames(encoded: bytes) -> np.ndarray:
    moving = ImageSequence.Iterator(Image.open(io.BytesIO(encoded)))
    return np.stack([np.asarray(frame.convert("RGB")) for frame in moving])


def make_videos(folder: Any, logger: Any, callback: VideoLogger) -> list[GeneratedVideo]:
    fabric = L.Fabric(
        accelerator="cpu",
        devices=1,
        strategy=HostResidentStrategy(),
        loggers=logger,
        callbacks=[callback],
    )
    fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(folder))
    prompts = PromptDataset(PROMPTS, seed=7, fps=8, **SIZE)
    videos = PredictLoop(fabric).run(module, prompts, return_predictions=True)
    assert videos is not None
    logger.finalize("success")
    return videos


def run_twice(folder: Any, logger: Any, seen: Callable[[], list[int]]) -> list[list[int]]:
    """Make two videos with a logger, then one and break off; return what is on disk."""
    fabric = L.Fabric(
        accelerator="cpu",
        devices=1,
        strategy=HostResidentStrategy(),
        loggers=logger,
        callbacks=[VideoLogger(log_videos=False)],
    )
    fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(folder))
    loop = PredictLoop(fabric)
    loop.run(module, PromptDataset(PROMPTS, seed=7, fps=8, **SIZE))
    first = seen()
    left = loop.iterate(module, PromptDataset(PROMPTS, seed=9, fps=8, **SIZE))
    next(left)
    with pytest.raises(RuntimeError, match="no more"):
        left.throw(RuntimeError("no more"))  # type: ignore[attr-defined]
    return [first, seen()]


def test_rows_are_on_the_disk_when_a_run_ends_or_breaks_and_the_next_one_adds_its_own(
    checkpoint, tmp_path
) -> None:
    logger = CSVLogger(tmp_path)

    def seen() -> list[int]:
        with open(f"{logger.log_dir}/metrics.csv") as file:
            return [int(row["seed"]) for row in csv.DictReader(file)]

    assert run_twice(checkpoint("t2v"), logger, seen) == [[7, 8], [7, 8, 9]]


def test_tensorboards_file_stays_open_so_that_the_next_run_adds_to_it(checkpoint, tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    logger = TensorBoardLogger(tmp_path, flush_secs=3600)

    def seen() -> list[int]:
        return [int(event.value) for event in read_events(logger.log_dir).Scalars("seed")]

    assert run_twice(checkpoint("t2v"), logger, seen) == [[7, 8], [7, 8, 9]]
    (_,) = Path(logger.log_dir).iterdir()


def test_a_logger_that_got_no_row_is_left_alone(tmp_path) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(tmp_path))
    VideoLogger().on_predict_end(fabric)
    assert not list(tmp_path.iterdir())


def check_shown(folder: str, videos: list[GeneratedVideo]) -> None:
    events = read_events(folder)
    assert sorted(events.Tags()["images"]) == sorted(PROMPTS)
    for step, video in enumerate(videos):
        (event,) = events.Images(video.prompt)
        assert event.step == step
        assert (event.height, event.width) == video.frames.shape[1:3]
        assert np.array_equal(read_frames(event.encoded_image_string), in_256_colours(video.frames))


def in_256_colours(frames: np.ndarray) -> np.ndarray:
    pictures = (Image.fromarray(frame) for frame in frames)
    fewer = (picture.convert("P", palette=Image.Palette.ADAPTIVE) for picture in pictures)
    return np.stack([np.asarray(picture.convert("RGB")) for picture in fewer])


def test_numbers_and_videos_are_in_tensorboards_file(checkpoint, tmp_path, capsys) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    logger = TensorBoardLogger(tmp_path)
    videos = make_videos(checkpoint("t2v"), logger, VideoLogger())
    events = read_events(logger.log_dir)
    assert [(event.step, event.value) for event in events.Scalars("seed")] == [(0, 7), (1, 8)]
    assert all(event.value > 0 for event in events.Scalars("generation_time_s"))
    check_shown(logger.log_dir, videos)
    assert "moviepy" not in capsys.readouterr().out


def test_a_trainers_tensorboard_gets_them_too(checkpoint, tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=TrainerHostResidentStrategy(),
        callbacks=[TrainerCallback(VideoLogger())],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    data = PromptDataModule(PROMPTS, seed=7, fps=8, **SIZE)
    videos = trainer.predict(module, datamodule=data)
    logger.finalize("success")
    check_shown(logger.log_dir, videos)


@pytest.mark.parametrize("log_videos", [True, False])
def test_a_logger_that_takes_no_videos_is_named_once(
    checkpoint, tmp_path, caplog, log_videos
) -> None:
    caplog.set_level("INFO", logger="fastvideo_lightning")
    make_videos(checkpoint("t2v"), CSVLogger(tmp_path), VideoLogger(log_videos=log_videos))
    said = [record.message for record in caplog.records if "takes no videos" in record.message]
    assert [message.split()[0] for message in said] == ["CSVLogger"] * log_videos
