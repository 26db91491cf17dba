"""FastVideo Lightning: video diffusion models that do not fit on the GPU, in Lightning's idiom.

Names load lazily (PEP 562): lightning and diffusers take seconds to import.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fastvideo_lightning.version import STARTED_BY as STARTED_BY
from fastvideo_lightning.version import __version__ as __version__

if TYPE_CHECKING:
    from fastvideo_lightning.checkpoint.folder import CheckpointError
    from fastvideo_lightning.config import OffloadConfig, SamplingParams
    from fastvideo_lightning.generator.generator import VideoGenerator
    from fastvideo_lightning.generator.replan import OutOfGPUMemoryError
    from fastvideo_lightning.loop import PredictLoop
    from fastvideo_lightning.modules import VideoModule
    from fastvideo_lightning.output.video import GeneratedVideo
    from fastvideo_lightning.plan import Plan, make_plan
    from fastvideo_lightning.prompts.datamodule import PromptDataModule
    from fastvideo_lightning.prompts.dataset import PromptDataset
    from fastvideo_lightning.strategies import (
        FSDPInferenceStrategy,
        HostResidentStrategy,
        make_strategy,
    )
    from fastvideo_lightning.strategies.trainer import TrainerHostResidentStrategy

_HOME = {
    "CheckpointError": "checkpoint.folder",
    "FSDPInferenceStrategy": "strategies",
    "GeneratedVideo": "output.video",
    "HostResidentStrategy": "strategies",
    "OffloadConfig": "config",
    "OutOfGPUMemoryError": "generator.replan",
    "Plan": "plan",
    "PredictLoop": "loop",
    "PromptDataModule": "prompts.datamodule",
    "PromptDataset": "prompts.dataset",
    "SamplingParams": "config",
    "TrainerHostResidentStrategy": "strategies.trainer",
    "VideoGenerator": "generator.generator",
    "VideoModule": "modules",
    "make_plan": "plan",
    "make_strategy": "strategies",
}

__all__ = [
    "CheckpointError",
    "FSDPInferenceStrategy",
    "GeneratedVideo",
    "HostResidentStrategy",
    "OffloadConfig",
    "OutOfGPUMemoryError",
    "Plan",
    "PredictLoop",
    "PromptDataModule",
    "PromptDataset",
    "SamplingParams",
    "TrainerHostResidentStrategy",
    "VideoGenerator",
    "VideoModule",
    "make_plan",
    "make_strategy",
]

# The docs have published these modules under the names that they had before.
_EARLIER = {
    "callbacks.budget": "callbacks.memory_budget",
    "callbacks.memory": "callbacks.memory_report",
    "offload.group": "offload.unit",
    "offload.partition": "offload.blocks",
    "offload.state": "offload.unit",
    "offload.stats": "offload.engine",
    "plan.cards": "plan.machine",
    "plan.planning": "plan.planner",
    "prompt_files": "prompts.files",
    "prompt_module": "prompts.datamodule",
    "replanning": "generator.replan",
}


class _Earlier(ModuleType):
    """A module under its earlier name; what it is asked for is loaded then."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        now = _EARLIER[self.__name__.removeprefix(f"{__name__}.")]
        return getattr(import_module(f"{__name__}.{now}"), name)


for _name in _EARLIER:
    sys.modules[f"{__name__}.{_name}"] = _Earlier(f"{__name__}.{_name}")


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastvideo_lightning.libraries import quiet_imports

    with quiet_imports():
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
