"""Writes a checkpoint as it runs, each block in one piece, so that runs copy from its files.

Read `layout` (what goes where), `packing` (how it is written), then `files`, `source` and `target`.
"""

from fastvideo_lightning.pack.packing import Packing, Progress, pack, plan_packing

__all__ = ["Packing", "Progress", "pack", "plan_packing"]
