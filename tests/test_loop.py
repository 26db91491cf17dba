import os
import warnings
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from fastvideo_lightning import HostResidentStrategy, PredictLoop, PromptDataset, loop
from fastvideo_lightning.loop import MOMENTS, check_callbacks

PROMPTS = PromptDataset(["one", "two", "three"], seed=10)


class Recorder:
    """A module or a callback that writes down what it is told."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def on_predict_start(self, fabric: Any = None) -> None:
        self.log.append(f"{self.name}.start")

    def on_predict_epoch_start(self) -> None:
        self.log.append(f"{self.name}.epoch_start")

    def on_predict_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log.append(f"{self.name}.batch_start {batch_idx} {batch['prompt']}")

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log.append(f"{self.name}.batch_end {outputs.index}")

    def on_predict_epoch_end(self) -> None:
        self.log.append(f"{self.name}.epoch_end")

    def on_predict_end(self) -> None:
        self.log.append(f"{self.name}.end")

    def on_exception(self, exception: BaseException) -> None:
        self.log.append(f"{self.name}.exception {type(exception).__name__}")


class Speaker(Recorder, L.LightningModule):
    """Stands in for a VideoModule: the loop asks no more of it."""

    def __init__(self, log: list[str], fail: BaseException | None = None) -> None:
        L.LightningModule.__init__(self)
        self.name, self.log, self.fail = "module", log, fail
        self.weight = torch.nn.Parameter(torch.ones(1))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not self.training
        if self.fail is not None:
            raise self.fail
        return SimpleNamespace(index=batch["index"], prompt=batch["prompt"])


def make_fabric(*callbacks: object) -> L.Fabric:
    fabric = L.Fabric(
        accelerator="cpu", devices=1, strategy=HostResidentStrategy(), callbacks=list(callbacks)
    )
    fabric.launch()
    return fabric


@pytest.mark.parametrize("setup", ["setup", "setup_module"])
def test_hooks_come_in_lightnings_order_callbacks_before_the_module_once_each(setup: str) -> None:
    log: list[str] = []
    fabric = make_fabric(Recorder("callback", log))
    module = getattr(fabric, setup)(Speaker(log))
    PredictLoop(fabric).run(module, PromptDataset(["one", "two"]))
    moments = ["start", "epoch_start", "batch_start 0 one", "batch_end 0"]
    moments += ["batch_start 1 two", "batch_end 1", "epoch_end", "end"]
    assert log == [f"{who}.{moment}" for moment in moments for who in ("callback", "module")]


def test_predictions_are_returned_when_asked_for() -> None:
    fabric = make_fabric()
    module = fabric.setup(Speaker([]))
    loop = PredictLoop(fabric)
    assert loop.run(module, PROMPTS) is None
    videos = loop.run(module, PROMPTS, return_predictions=True)
    assert videos is not None
    assert [video.prompt for video in videos] == ["one", "two", "three"]


def test_a_loader_of_single_items_works_like_the_dataset() -> None:
    fabric = make_fabric()
    loader = DataLoader(PROMPTS, batch_size=None)
    videos = PredictLoop(fabric).run(fabric.setup(Speaker([])), loader, return_predictions=True)
    assert videos is not None
    assert [video.index for video in videos] == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_exception_is_announced_and_raised_again(error: BaseException) -> None:
    log: list[str] = []
    fabric = make_fabric(Recorder("callback", log))
    with pytest.raises(type(error)) as caught:
        PredictLoop(fabric).run(fabric.setup(Speaker(log, fail=error)), PROMPTS)
    assert caught.value is error
    name = type(error).__name__
    assert log[-2:] == [f"callback.exception {name}", f"module.exception {name}"]


def test_training_mode_is_put_back() -> None:
    fabric = make_fabric()
    module = Speaker([]).train()
    PredictLoop(fabric).run(fabric.setup(module), PROMPTS)
    assert module.training


@pytest.mark.parametrize("source", [PROMPTS, DataLoader(PROMPTS, batch_size=None)])
def test_ranks_share_the_prompts_without_repeating_one(source: Any) -> None:
    seen = []
    for rank in range(2):
        # A fake: two ranks in one process, for the split alone.
        fabric = SimpleNamespace(global_rank=rank, world_size=2)
        turns, number = PredictLoop(fabric)._share(source)  # type: ignore[arg-type]
        share = [turn.batch["index"] for turn in turns]
        assert len(share) == number
        seen.append(share)
    assert seen == [[0, 2], [1]]


@pytest.mark.parametrize(("world_size", "is_skipped"), [(1, True), (2, False)])
def test_a_failure_is_not_skipped_where_ranks_wait_for_each_other(
    world_size: int, is_skipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = make_fabric(SimpleNamespace(lockstep=True))
    monkeypatch.setattr(type(fabric), "world_size", world_size)
    module = Speaker([], fail=RuntimeError("no such image"))
    videos = PredictLoop(fabric).iterate(module, PROMPTS, skip_failure=lambda *_: True)
    if is_skipped:
        assert list(videos) == []
        return
    with pytest.raises(RuntimeError, match="no such image") as caught:
        list(videos)
    assert "the others wait" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("on_denoise_step_ended", "on_denoise_step_end"),
        ("on_denoising_step_end", "on_denoise_step_end"),
        ("denoise_step_end", "on_denoise_step_end"),
        ("onPredictEnd", "on_predict_end"),
        ("on_prediction_batch_start", "on_predict_batch_start"),
        ("on_video_write_end", "on_write_end"),
        ("on_exeption", "on_exception"),
        ("on_replanned", "on_replan"),
        ("tear_down", "teardown"),
        ("on_predict_batch_ends", "on_predict_batch_end"),
    ],
)
def test_a_misspelt_moment_is_told_with_the_nearest_also_where_it_is_the_only_one(name, nearest):
    alone = type("Recorder", (), {name: lambda self: None})()
    beside = type("Recorder", (), {name: lambda self: None, "teardown": lambda self: None})()
    for callback in (alone, beside):
        with pytest.warns(UserWarning, match=f"Recorder has {name}, .* Did you mean {nearest}"):
            assert check_callbacks([callback]) == [callback]


@pytest.mark.parametrize(
    "callback",
    [print, lambda video: None, 5, "on_predict_end", type("Logger", (), {"log": print})()],
)
def test_an_object_that_would_never_be_called_is_refused_with_the_moments(callback):
    with pytest.raises(TypeError, match=r"callbacks\[1\].*never be called.*on_denoise_step_end"):
        check_callbacks([Recorder("a", []), callback])


def test_a_class_and_a_callback_outside_of_a_list_are_refused():
    with pytest.raises(TypeError, match=r"class Recorder.*Pass Recorder\(\)"):
        check_callbacks([Recorder])
    with pytest.raises(TypeError, match="Pass it in a list"):
        check_callbacks(Recorder("a", []))


def test_callbacks_of_the_package_are_told_of_nothing():
    from fastvideo_lightning import callbacks

    ours = [callbacks.ModelOffload("vae"), callbacks.VideoWriter(), callbacks.EncodeAhead()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_callbacks([*ours, callbacks.ProgressBar(), Recorder("a", [])])


def test_an_argument_that_a_moment_does_not_have_is_refused_before_the_run():
    from lightning.pytorch.callbacks import Timer

    def hears(moment, hook):
        return type("Recorder", (), {moment: hook})()

    for moment in MOMENTS:
        check_callbacks([hears(moment, lambda self, *rest, extra=0, **others: None)])
        with pytest.raises(TypeError, match=rf"Recorder\.{moment} takes extra, and the moment has"):
            check_callbacks([hears(moment, lambda self, extra: None)])
    with pytest.raises(TypeError, match=r"takes latent, .* Did you mean latents\?"):
        check_callbacks([hears("on_denoise_step_end", lambda self, latent: None)])
    with pytest.raises(TypeError, match=r"Timer\.\w+ takes trainer"):
        check_callbacks([Timer()])


def test_a_script_hears_of_a_misspelt_moment_when_it_runs():
    fabric = L.Fabric(accelerator="cpu", callbacks=[type("Odd", (), {"on_predict_ended": print})()])
    with pytest.warns(UserWarning, match="Odd has on_predict_ended"):
        PredictLoop(fabric).run(Speaker([]), [])


@pytest.mark.parametrize(
    ("policy", "device", "threads", "count"),
    [
        (None, "cpu", 2, 1),
        (None, "cpu", 1, 0),
        (None, "cuda", 2, 0),
        ("PASSIVE", "cpu", 2, 0),
        ("ACTIVE", "cpu", 2, 0),
    ],
)
def test_threads_that_spin_are_told_of_once_and_left_as_they_are(
    monkeypatch, recwarn, policy, device, threads, count
):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    loop._warn_of_spinning.cache_clear()
    fabric = L.Fabric(accelerator="cpu", devices=1)
    there = property(lambda self: torch.device(device))
    monkeypatch.setattr(L.Fabric, "device", there)
    before = dict(os.environ)
    for _ in range(2):
        assert list(PredictLoop(fabric).iterate(torch.nn.Identity(), [])) == []
    told = [str(each.message) for each in recwarn if "OMP_WAIT_POLICY" in str(each.message)]
    assert len(told) == count
    assert dict(os.environ) == before
    loop._warn_of_spinning.cache_clear()
