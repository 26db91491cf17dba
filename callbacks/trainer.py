"""TrainerCallback: the callbacks of a Fabric script under lightning.Trainer's predict.

The Trainer calls hooks by position, knows no `on_after_setup` and accepts only its own kind of
callback. Nothing is implemented twice: the callback inside hears the moments that it would hear
from `PredictLoop`, with the same arguments.
"""

import inspect
from collections.abc import Mapping, Sized
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import lightning as L
import torch

from fastvideo_lightning.offload.handles import Call
from fastvideo_lightning.output.video import GeneratedVideo


@runtime_checkable
class Stateful(Protocol):
    """A callback with something to keep in a checkpoint."""

    def state_dict(self) -> dict[str, object]: ...  # noqa: D102
    def load_state_dict(self, state_dict: dict[str, object]) -> None: ...  # noqa: D102


class TrainerFabric:
    """What Fabric callbacks and video modules use of a Fabric, on top of a Trainer.

    Args:
        trainer: The Trainer, whose `TrainerCallback`s `call` speaks to.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self._trainer.strategy.root_device

    def __getattr__(self, name: str) -> object:
        """All else (`global_rank`, `world_size`, `is_global_zero`, `loggers`) is the Trainer's."""
        value: object = getattr(self._trainer, name)
        return value

    def log_dict(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand numbers to every logger."""
        for logger in self._trainer.loggers:
            logger.log_metrics(metrics=dict(metrics), step=step)

    def call(self, hook_name: str, **arguments: object) -> None:
        """Announce a moment to the callbacks inside of the Trainer's `TrainerCallback`s."""
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TrainerCallback):
                callback.hear(hook_name, arguments)


_FABRICS: WeakKeyDictionary[L.Trainer, TrainerFabric] = WeakKeyDictionary()


class TrainerCallback(L.Callback):
    """Lets a callback of ours, or any Fabric callback, take part in `Trainer.predict`.

    A placement is attached in `setup` and detached in `teardown`, as the Trainer calls them: after
    each `predict`. After an exception it stays, and the next `predict` goes on with it. Use it with
    `TrainerHostResidentStrategy`, which leaves the weights where they are.

    Args:
        callback: Such as `LayerwiseOffload("transformer")`.
    """

    def __init__(self, callback: object) -> None:
        self.callback = callback

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint; several placements differ by their targets."""
        return f"{type(self.callback).__qualname__}({getattr(self.callback, 'target', '')})"

    def state_dict(self) -> dict[str, object]:
        """The state of the callback inside, where it has one."""
        return self.callback.state_dict() if isinstance(self.callback, Stateful) else {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Give the callback inside its state back."""
        if isinstance(self.callback, Stateful):
            self.callback.load_state_dict(state_dict)

    def hear(self, moment: str, arguments: Mapping[str, object]) -> None:
        """Call a method of the callback inside, if it has it, with the arguments that it takes."""
        method = getattr(self.callback, moment, None)
        if callable(method):
            # What a placement makes outlives the run, which inference tensors are not for.
            with torch.inference_mode(False), torch.no_grad():
                method(**_taken_by(method, arguments))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Place the weights; ValueError for another stage than predict."""
        if stage != "predict":
            raise ValueError(
                f"TrainerCallback({self.callback!r}) is for Trainer.predict, got stage {stage!r}. "
                "To train, write the loop with Fabric, as in examples/finetune_lora.py."
            )
        fabric = _FABRICS.setdefault(trainer, TrainerFabric(trainer))
        pl_module._fabric = fabric  # type: ignore[assignment]
        self.hear("on_after_setup", {"fabric": fabric, "module": pl_module})

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell how many batches there are.

        Raises:
            ValueError: Processes that bring blocks together have not equally many prompts.
        """
        if trainer.world_size > 1 and getattr(self.callback, "lockstep", False):
            _check_equal_shares(trainer)
        counts = trainer.num_predict_batches
        known = all(isinstance(count, int) for count in counts)
        num_batches = sum(int(count) for count in counts) if known else None
        self._tell("on_predict_start", trainer, pl_module, num_batches=num_batches)

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pass it on."""
        self._tell("on_predict_epoch_start", trainer, pl_module)

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pass it on."""
        moment = {"batch": batch, "batch_idx": batch_idx}
        self._tell("on_predict_batch_start", trainer, pl_module, **moment)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: GeneratedVideo,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pass it on."""
        moment = {"outputs": outputs, "batch": batch, "batch_idx": batch_idx}
        self._tell("on_predict_batch_end", trainer, pl_module, **moment)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pass it on."""
        self._tell("on_predict_epoch_end", trainer, pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pass it on."""
        self._tell("on_predict_end", trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Pass it on."""
        self._tell("on_exception", trainer, pl_module, exception=exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Detach the placement."""
        self._tell("teardown", trainer, pl_module)
        pl_module._fabric = None

    def _tell(
        self, moment: str, trainer: L.Trainer, pl_module: L.LightningModule, **more: object
    ) -> None:
        self.hear(moment, {"fabric": _FABRICS.get(trainer), "module": pl_module, **more})


def _check_equal_shares(trainer: L.Trainer) -> None:
    """Raise ValueError unless each process gets as many batches: the Trainer repeats none."""
    loaders = trainer.predict_dataloaders
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        prompts = getattr(loader, "dataset", None)
        count = len(prompts) if isinstance(prompts, Sized) else None
        if count is None or count % trainer.world_size:
            raise ValueError(
                f"{trainer.world_size} processes bring each block together, so each needs equally "
                f"many prompts, got {'an unknown number' if count is None else count} in all. Pass "
                f"a multiple of {trainer.world_size}, or LayerwiseOffload(..., "
                "shard_transport='local'), or use PredictLoop, which evens them out."
            )


def _taken_by(method: Call, arguments: Mapping[str, object]) -> Mapping[str, object]:
    """Those of the arguments that a method has parameters for, as Fabric chooses them."""
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}
