"""The one place that wires: configuration, strategy, callbacks, module and loop.

Read `generator`, then `placements` (what the flags mean for a model) and `replan` (what is done
where the GPU's memory runs out).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvideo_lightning.config.devices import check_devices
    from fastvideo_lightning.generator.generator import VideoGenerator
    from fastvideo_lightning.generator.replan import OutOfGPUMemoryError

_HOME = {
    "OutOfGPUMemoryError": "replan",
    "VideoGenerator": "generator",
    "check_devices": "generator",
}

__all__ = [
    "OutOfGPUMemoryError",
    "VideoGenerator",
    "check_devices",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
