"""Our callbacks and modules under lightning.Trainer: what the predict loop makes, bit for bit."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from support.checkpoints import PROMPT, SIZE
from support.references import make_plain_frames

from fastvideo_lightning import (
    HostResidentStrategy,
    PredictLoop,
    PromptDataModule,
    PromptDataset,
    TrainerHostResidentStrategy,
    VideoModule,
)
from fastvideo_lightning.callbacks import (
    CPUExecution,
    LayerwiseOffload,
    ModelOffload,
    TrainerCallback,
    VideoLogger,
    VideoWriter,
)

SAMPLING = {**SIZE, "guidance_scale": 3.0}
PROMPTS = [PROMPT, "a green square moves left"]


def placements() -> list[Any]:
    return [LayerwiseOffload("transformer"), CPUExecution("text_encoder"), ModelOffload("vae")]


def make_trainer(callbacks: list[Any], **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=TrainerHostResidentStrategy(),
        callbacks=[TrainerCallback(callback) for callback in callbacks],
        **{
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **options,
        },
    )


class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_") and name != "teardown":
            raise AttributeError(name)
        return lambda **_: self.heard.append(name)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_the_trainer_makes_the_videos_of_the_loop_in_the_same_order_of_moments(
    checkpoint, inference_mode
) -> None:
    ours, theirs = Listener(), Listener()
    fabric = L.Fabric(
        accelerator="cpu",
        devices=1,
        strategy=HostResidentStrategy(),
        callbacks=[*placements(), ours],
    )
    fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(checkpoint("t2v")))
    dataset = PromptDataset(PROMPTS, seed=7, **SAMPLING)
    expected = PredictLoop(fabric).run(module, dataset, return_predictions=True)
    fabric.call("teardown")

    module = VideoModule.from_pretrained(checkpoint("t2v"))
    callbacks = placements()
    trainer = make_trainer([*callbacks, theirs], inference_mode=inference_mode)
    data = PromptDataModule(PROMPTS, seed=7, **SAMPLING)
    for _ in range(2):
        theirs.heard.clear()
        videos = trainer.predict(module, datamodule=data)
        assert [video.index for video in videos] == [0, 1]
        for video, other in zip(videos, expected, strict=True):
            assert np.array_equal(video.frames, other.frames)
        assert theirs.heard == ours.heard
    plain = make_plain_frames(checkpoint("t2v"), SAMPLING)
    assert np.array_equal(videos[0].frames, plain)
    assert not torch.distributed.is_initialized()
    assert all(not callback.attachments for callback in callbacks)


def test_a_loader_of_ones_own_and_a_writer_work(checkpoint, tmp_path) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    trainer = make_trainer([LayerwiseOffload("transformer"), VideoWriter(tmp_path)])
    loader = torch.utils.data.DataLoader(PromptDataset(PROMPTS, **SAMPLING), batch_size=1)
    videos = trainer.predict(module, loader)
    assert [video.video_path.stat().st_size > 0 for video in videos] == [True, True]


def test_after_an_exception_the_next_predict_is_right(checkpoint) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    callbacks = placements()
    data = PromptDataModule([PROMPT], seed=7, **SAMPLING)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    handle = module.get_submodule("transformer.blocks.1").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        make_trainer(callbacks).predict(module, datamodule=data)
    handle.remove()
    callbacks[0].attachments[0].engine.check()
    (video,) = make_trainer(callbacks).predict(module, datamodule=data)
    assert np.array_equal(video.frames, make_plain_frames(checkpoint("t2v"), SAMPLING))


def read_rows(logger: CSVLogger) -> list[dict[str, str]]:
    import csv
    from pathlib import Path

    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_times_reach_the_loggers_and_numbering_goes_on_from_a_checkpoint(
    checkpoint, tmp_path
) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    logger = CSVLogger(tmp_path, name="trainer")
    video_logger = VideoLogger()
    trainer = make_trainer([video_logger, LayerwiseOffload("transformer")], logger=logger)
    trainer.predict(module, datamodule=PromptDataModule(PROMPTS, seed=7, **SAMPLING))
    rows = read_rows(logger)
    assert [(row["step"], row["seed"]) for row in rows] == [("0", "7"), ("1", "8")]
    assert all(float(row["generation_time_s"]) > 0 for row in rows)

    callback = TrainerCallback(video_logger)
    assert callback.state_key == "VideoLogger()"
    assert TrainerCallback(LayerwiseOffload("vae")).state_key == "LayerwiseOffload(vae)"
    kept = callback.state_dict()
    other = TrainerCallback(VideoLogger())
    other.load_state_dict(kept)
    assert other.callback.num_videos == 2


def test_fabric_keeps_a_callbacks_state_and_its_logger_gets_the_videos(
    checkpoint, tmp_path
) -> None:
    shown = []

    class Logger(CSVLogger):
        @property
        def experiment(self) -> Any:
            writer = super().experiment
            writer.add_video = lambda tag, frames, step, fps: shown.append((tag, frames.shape, fps))
            return writer

    video_logger = VideoLogger()
    fabric = L.Fabric(
        accelerator="cpu",
        devices=1,
        strategy=HostResidentStrategy(),
        loggers=Logger(tmp_path, name="fabric"),
        callbacks=[video_logger],
    )
    fabric.launch()
    module = fabric.setup(VideoModule.from_pretrained(checkpoint("t2v")))
    PredictLoop(fabric).run(module, PromptDataset([PROMPT], fps=8, **SAMPLING))
    assert shown == [(PROMPT, (1, 5, 3, 32, 48), 8)]
    fabric.save(tmp_path / "state.ckpt", {"videos": video_logger})
    video_logger.num_videos = 0
    fabric.load(tmp_path / "state.ckpt", {"videos": video_logger})
    assert video_logger.num_videos == 1


@pytest.mark.parametrize("callback", [[], [LayerwiseOffload("transformer")]])
def test_a_module_without_a_training_step_says_so(checkpoint, callback) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    loader = torch.utils.data.DataLoader(PromptDataset(PROMPTS, **SAMPLING), batch_size=1)
    with pytest.raises(Exception, match=r"No `training_step\(\)` method defined"):
        make_trainer(callback).fit(module, loader)


def plain_trainer(*callbacks: Any) -> L.Trainer:
    """A Trainer with a strategy of its own, which moves modules."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    placed = [TrainerCallback(callback) for callback in callbacks]
    return L.Trainer(accelerator="cpu", callbacks=placed, enable_checkpointing=False, **quiet)


def test_a_trainers_own_strategy_hides_no_reason_behind_weights_that_were_not_read(
    checkpoint,
) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    loader = torch.utils.data.DataLoader(PromptDataset(PROMPTS, **SAMPLING), batch_size=1)
    with pytest.raises(Exception, match=r"No `training_step\(\)` method defined"):
        plain_trainer().fit(module, loader)
    with pytest.raises(RuntimeError, match=r"not been read yet.*TrainerHostResidentStrategy"):
        module.to("meta")
    data = PromptDataModule([PROMPT], seed=7, **SAMPLING)
    (video,) = plain_trainer(LayerwiseOffload("transformer")).predict(module, datamodule=data)
    assert np.array_equal(video.frames, make_plain_frames(checkpoint("t2v"), SAMPLING))
    assert module.to(torch.float64).transformer.proj_out.weight.dtype == torch.float64


def test_the_strategy_and_the_callback_are_for_predict_alone(checkpoint) -> None:
    class Trainable(L.LightningModule):
        def training_step(self, batch: Any) -> None: ...
        def configure_optimizers(self) -> None: ...

    loader = torch.utils.data.DataLoader([1])
    with pytest.raises(ValueError, match=r"is for Trainer\.predict, got TrainerFn\.FITTING"):
        make_trainer([]).fit(Trainable(), loader)
    with pytest.raises(ValueError, match=r"is for Trainer\.predict, got stage .*fit"):
        make_trainer([ModelOffload("vae")]).fit(Trainable(), loader)


def test_a_precision_is_refused(checkpoint) -> None:
    module = VideoModule.from_pretrained(checkpoint("t2v"))
    data = PromptDataModule([PROMPT], **SAMPLING)
    with pytest.raises(ValueError, match="precision must stay unset, got 'bf16-true'"):
        make_trainer([], precision="bf16-true").predict(module, datamodule=data)
