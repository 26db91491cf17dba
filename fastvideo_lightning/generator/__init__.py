"""The one place that wires: configuration, strategy, callbacks, module and loop.

Read `generator`, then `placements` (what the flags mean for a model) and `replan` (what is done
where the GPU's memory runs out).
"""

from typing import TYPE_CHECKING

from fastvideo_lightning.libraries import hand_on

if TYPE_CHECKING:
    from fastvideo_lightning.config.devices import check_devices as check_devices
    from fastvideo_lightning.generator.generator import VideoGenerator as VideoGenerator
    from fastvideo_lightning.generator.replan import OutOfGPUMemoryError as OutOfGPUMemoryError

_HOME = {
    "OutOfGPUMemoryError": "replan",
    "VideoGenerator": "generator",
    "check_devices": "generator",
}

__all__ = list(_HOME)


__getattr__ = hand_on(__name__, _HOME)
