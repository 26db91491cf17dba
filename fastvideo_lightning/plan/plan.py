"""Plan: what goes where for one model, one size of video and one budget."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan.choose import CHOSEN, round_up
from fastvideo_lightning.plan.machine import GIB, Machine
from fastvideo_lightning.plan.notes import make_notes, notes_on_gpus
from fastvideo_lightning.plan.predict import Prediction, predict
from fastvideo_lightning.plan.workload import Subject

if TYPE_CHECKING:
    from rich.console import Group

_OF_THE_BUDGET = {"gpu_memory_budget", "on_oom"}


@dataclass(frozen=True)
class Plan:
    """What goes where, and what that takes.

    `print(plan)` shows it as a table; `to_dict` is for programs.

    Attributes:
        model: The model's name.
        subject: What was measured of the model and the video.
        prediction: Components, stages and flags.
        machine: The hardware; None where memory alone is known.
        budget_bytes: Device memory that may be reserved; None where no budget was given.
        smallest_bytes: The smallest budget that is possible under the user's flags.
        num_gpus: GPUs that share the prompts; the plan is for each of them.
        dtype: What the model is loaded with, where that was asked for.
    """

    model: str
    subject: Subject
    prediction: Prediction
    machine: Machine | None
    budget_bytes: int | None
    smallest_bytes: int
    num_gpus: int = 1
    dtype: str = "auto"

    @property
    def config(self) -> OffloadConfig:
        """The flags, as `VideoGenerator` takes them."""
        return self.prediction.config

    @property
    def flags(self) -> dict[str, Any]:
        """The flags that the plan decides and that have an effect on the model, by name."""
        without_effect = set()
        if not self.config.dit_layerwise_offload:
            without_effect.add("dit_resident_blocks")
            if not self.config.text_encoder_layerwise_offload:
                without_effect.add("num_slots")
        if not self.subject.by_role(Role.IMAGE_ENCODER):
            without_effect.add("image_encoder_cpu_offload")
        return {n: getattr(self.config, n) for n in CHOSEN if n not in without_effect}

    @property
    def command_line(self) -> str:
        """The flags as one types them, and what else was asked for that the plan counts on."""
        words = [f"--num-gpus {self.num_gpus}"] if self.num_gpus > 1 else []
        words += [f"--dtype {self.dtype}"] if self.dtype != "auto" else []
        for name, value in {**self.flags, **self._asked}.items():
            stem = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{stem}" if value else f"--no-{stem}")
            elif value != getattr(OffloadConfig, name):
                words.append(f"--{stem} {value}")
        return " ".join(words)

    @property
    def _asked(self) -> dict[str, Any]:
        """The flags that the plan does not decide, where they are none of the defaults."""
        default, others = OffloadConfig(), OffloadConfig.__dataclass_fields__.keys() - {*CHOSEN}
        asked = {n: getattr(self.config, n) for n in sorted(others - _OF_THE_BUDGET)}
        return {n: value for n, value in asked.items() if value != getattr(default, n)}

    @property
    def reserved_bytes(self) -> int:
        """Device memory that is reserved at most."""
        return self.prediction.reserved_bytes

    @property
    def host_bytes(self) -> int:
        """Host memory of the weights, those of mapped files included."""
        return sum(part.host_bytes for part in self.prediction.components)

    @property
    def time_s(self) -> float | None:
        """Of one video without loading and writing; None where no machine is known."""
        return None if self.machine is None else self.prediction.time_s

    @property
    def step_s(self) -> float | None:
        """Of one denoising step; None where no machine is known."""
        time = self.prediction.stages[1].time_s
        return None if time is None else time / self.subject.request.num_steps

    @property
    def notes(self) -> list[str]:
        """What the plan changes of the pixels, and what it leaves out, in sentences."""
        notes = make_notes(self.subject, self.prediction, self.machine)
        return [*notes, *notes_on_gpus(self.num_gpus, self.prediction, self.machine)]

    def under(self, config: OffloadConfig) -> Prediction:
        """Predict the same video under other flags."""
        return predict(self.subject, config, self.machine)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, sizes in bytes and times in seconds."""
        return {
            "model": self.model,
            "machine": None if self.machine is None else asdict(self.machine),
            "budget_bytes": self.budget_bytes,
            "smallest_budget_gib": round_up(self.smallest_bytes),
            "num_gpus": self.num_gpus,
            "request": asdict(self.subject.request),
            "components": [asdict(part) for part in self.prediction.components],
            "stages": [asdict(stage) for stage in self.prediction.stages],
            "slot_bytes": self.prediction.slot_bytes,
            "reserved_bytes": self.reserved_bytes,
            "reserved_gib": self.reserved_bytes / GIB,
            "host_bytes": self.host_bytes,
            "time_s": self.time_s,
            "step_s": self.step_s,
            "notes": self.notes,
            "flags": self.flags,
            "command_line": self.command_line,
        }

    def __rich__(self) -> "Group":
        from fastvideo_lightning.plan.show import draw_plan

        return draw_plan(self)

    def __str__(self) -> str:
        from fastvideo_lightning.plan.show import plan_text

        return plan_text(self)
