"""One module per model family; which one a checkpoint gets is told by its pipeline's class name."""

from fastvideo_lightning.libraries import quiet_imports

with quiet_imports():
    from fastvideo_lightning.modules.base import VideoModule, family_of, find_family
    from fastvideo_lightning.modules.families import FamilyModule
    from fastvideo_lightning.modules.generic import GenericModule
    from fastvideo_lightning.modules.wan import WanModule

__all__ = ["FamilyModule", "GenericModule", "VideoModule", "WanModule", "family_of", "find_family"]
