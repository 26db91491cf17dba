"""FastVideo Lightning: video diffusion models that do not fit on the GPU, in Lightning's idiom.

Names load lazily (PEP 562): lightning and diffusers take seconds to import.
"""

from importlib import import_module
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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastvideo_lightning.libraries import quiet_imports

    with quiet_imports():
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
