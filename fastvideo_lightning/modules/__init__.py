"""One module per model family; which one a checkpoint gets is told by its pipeline's class name."""

from fastvideo_lightning.libraries import quiet_imports

with quiet_imports():
    from fastvideo_lightning.modules.base import VideoModule
    from fastvideo_lightning.modules.families import FAMILIES, FamilyModule
    from fastvideo_lightning.modules.generic import GenericModule
    from fastvideo_lightning.modules.wan import WanModule

__all__ = ["FamilyModule", "GenericModule", "VideoModule", "WanModule", "find_family"]

_FAMILIES: dict[str, type[VideoModule]] = {
    "WanPipeline": WanModule,
    "WanImageToVideoPipeline": WanModule,
    **dict.fromkeys(FAMILIES, FamilyModule),
}


def find_family(class_name: str) -> type[VideoModule]:
    """Return the module for a diffusers pipeline class; the generic one where none knows it."""
    return _FAMILIES.get(class_name, GenericModule)
