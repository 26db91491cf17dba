"""TrainerHostResidentStrategy: HostResidentStrategy's twin for lightning.Trainer."""

from typing import TypeVar

import lightning as L
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

T = TypeVar("T")


class TrainerHostResidentStrategy(DDPStrategy):
    """Runs `Trainer.predict` on 1 to N devices and moves no weight.

    What reaches a device, a callback brings there: see `TrainerCallback`. With several devices the
    script is started again for each of them, as with DDP; with one there is no process group.
    """

    def setup_distributed(self) -> None:
        """Join the process group, where there is more than one process."""
        if self.num_nodes * self.num_processes > 1:
            super().setup_distributed()
        else:
            self.set_world_ranks()

    def setup(self, trainer: L.Trainer) -> None:
        """Leave the module as it is.

        Raises:
            ValueError: If it is not to predict, or the Trainer was given a precision: it would cast
                behind the pipeline.
        """
        if (fn := trainer.state.fn) != TrainerFn.PREDICTING:
            raise ValueError(
                f"{type(self).__name__} is for Trainer.predict, got {fn}. "
                "To train, write the loop with Fabric, as in examples/finetune_lora.py."
            )
        if type(self.precision_plugin) is not Precision:
            precision = self.precision_plugin.precision
            raise ValueError(
                f"The Trainer's precision must stay unset, got {precision!r}: it casts timesteps "
                "and weights behind the pipeline. Pass dtype=... to from_pretrained."
            )
        assert self.accelerator is not None
        self.accelerator.setup(trainer)  # all of DDP's that neither moves nor compares weights

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Return the object of process `src`."""
        return super().broadcast(obj, src) if self.world_size > 1 else obj

    def model_to_device(self) -> None:
        """Leave the weights where they are."""

    def teardown(self) -> None:
        """Leave the weights where they are: after an exception they are still placed."""
        assert self.accelerator is not None
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()
