"""Writes a checkpoint in the dtypes that it runs in, each unit in one piece."""

from fastvideo_lightning.pack.packing import Packing, Progress, pack, plan_packing

__all__ = ["Packing", "Progress", "pack", "plan_packing"]
