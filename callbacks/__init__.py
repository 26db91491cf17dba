"""Callbacks: which weights go where and when, and what people watch and keep.

The folder is installed as ``fastvideo_lightning.callbacks``; names load lazily (PEP 562). Read
`placement`, then `layerwise`, `model`, `cpu_execution` and `resident`, which place weights.
"""

from typing import TYPE_CHECKING

from fastvideo_lightning.libraries import hand_on

if __name__ == "callbacks":
    raise ImportError(
        "This folder is the package `fastvideo_lightning.callbacks`. Write "
        "`from fastvideo_lightning.callbacks import LayerwiseOffload` instead."
    )

if TYPE_CHECKING:
    from fastvideo_lightning.callbacks.cpu_execution import CPUExecution as CPUExecution
    from fastvideo_lightning.callbacks.encode_ahead import EncodeAhead as EncodeAhead
    from fastvideo_lightning.callbacks.layerwise import LayerwiseOffload as LayerwiseOffload
    from fastvideo_lightning.callbacks.logger import VideoLogger as VideoLogger
    from fastvideo_lightning.callbacks.memory_budget import MemoryBudget as MemoryBudget
    from fastvideo_lightning.callbacks.memory_report import MemoryReport as MemoryReport
    from fastvideo_lightning.callbacks.model import ModelOffload as ModelOffload
    from fastvideo_lightning.callbacks.placement import Attachment as Attachment
    from fastvideo_lightning.callbacks.placement import Placement as Placement
    from fastvideo_lightning.callbacks.progress import ProgressBar as ProgressBar
    from fastvideo_lightning.callbacks.resident import Resident as Resident
    from fastvideo_lightning.callbacks.trainer import TrainerCallback as TrainerCallback
    from fastvideo_lightning.callbacks.writer import VideoWriter as VideoWriter

_HOME = {
    "Attachment": "placement",
    "CPUExecution": "cpu_execution",
    "EncodeAhead": "encode_ahead",
    "LayerwiseOffload": "layerwise",
    "MemoryBudget": "memory_budget",
    "MemoryReport": "memory_report",
    "ModelOffload": "model",
    "Placement": "placement",
    "ProgressBar": "progress",
    "Resident": "resident",
    "TrainerCallback": "trainer",
    "VideoLogger": "logger",
    "VideoWriter": "writer",
}

__all__ = list(_HOME)


__getattr__ = hand_on(__name__, _HOME)
