"""A diffusers pipeline as a LightningModule; one file per model family.

Read `base` (the contract), `generic` and `families` (which one a checkpoint gets), then `pipelines`
and `steps` (how a call is watched). `lora` and `acceleration` are what may be added to a model.
"""

from fastvideo_lightning.libraries import quiet_imports

with quiet_imports():
    from fastvideo_lightning.modules.base import VideoModule, family_of, find_family
    from fastvideo_lightning.modules.families import FamilyModule
    from fastvideo_lightning.modules.generic import GenericModule
    from fastvideo_lightning.modules.minimax_h3 import MiniMaxH3Module
    from fastvideo_lightning.modules.wan import WanModule

__all__ = [
    "FamilyModule",
    "GenericModule",
    "MiniMaxH3Module",
    "VideoModule",
    "WanModule",
    "family_of",
    "find_family",
]
