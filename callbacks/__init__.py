"""Callbacks: which weights go where and when, and what people watch and keep.

The folder is installed as ``fastvideo_lightning.callbacks``; names load lazily (PEP 562). Read
`placement`, then `layerwise`, `model`, `cpu_execution` and `resident`, which place weights.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if __name__ == "callbacks":
    raise ImportError(
        "This folder is the package `fastvideo_lightning.callbacks`. Write "
        "`from fastvideo_lightning.callbacks import LayerwiseOffload` instead."
    )

if TYPE_CHECKING:
    from fastvideo_lightning.callbacks.cpu_execution import CPUExecution
    from fastvideo_lightning.callbacks.encode_ahead import EncodeAhead
    from fastvideo_lightning.callbacks.layerwise import LayerwiseOffload
    from fastvideo_lightning.callbacks.logger import VideoLogger
    from fastvideo_lightning.callbacks.memory_budget import MemoryBudget
    from fastvideo_lightning.callbacks.memory_report import MemoryReport
    from fastvideo_lightning.callbacks.model import ModelOffload
    from fastvideo_lightning.callbacks.progress import ProgressBar
    from fastvideo_lightning.callbacks.resident import Resident
    from fastvideo_lightning.callbacks.trainer import TrainerCallback
    from fastvideo_lightning.callbacks.writer import VideoWriter

_HOME = {
    "CPUExecution": "cpu_execution",
    "EncodeAhead": "encode_ahead",
    "LayerwiseOffload": "layerwise",
    "MemoryBudget": "memory_budget",
    "MemoryReport": "memory_report",
    "ModelOffload": "model",
    "ProgressBar": "progress",
    "Resident": "resident",
    "TrainerCallback": "trainer",
    "VideoLogger": "logger",
    "VideoWriter": "writer",
}

__all__ = [
    "CPUExecution",
    "EncodeAhead",
    "LayerwiseOffload",
    "MemoryBudget",
    "MemoryReport",
    "ModelOffload",
    "ProgressBar",
    "Resident",
    "TrainerCallback",
    "VideoLogger",
    "VideoWriter",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
