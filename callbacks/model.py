"""ModelOffload: a whole component comes in for its call and leaves after it."""

import torch
from torch import nn

from fastvideo_lightning.callbacks.placement import (
    Attachment,
    Placement,
    bindings_inside,
    weight_sources,
)
from fastvideo_lightning.offload.handles import Undo
from fastvideo_lightning.offload.hooks import hook_transient
from fastvideo_lightning.offload.host.mapped import check_supported
from fastvideo_lightning.offload.host.slab import HostMemory
from fastvideo_lightning.offload.registry import engine_of
from fastvideo_lightning.offload.tensors.bindings import split_staying
from fastvideo_lightning.offload.unit import OffloadUnit, UnitGroup


class ModelOffload(Placement):
    """Brings the target's weights to the device for each ``forward``, ``encode`` or ``decode``.

    They come by one copy, or from a mapped file by one for each contiguous piece of it. After the
    call the device memory is given back; nothing is copied back, for the host kept its bytes. A
    decoder comes in while the last block of the last denoising step computes, into an idle slot of
    the streamed blocks where it fits.

    Args:
        target: FQN of a component, such as ``"vae"``.
        host_memory: ``"auto"``, ``"mapped"`` (the checkpoint file itself is the host's copy),
            ``"pinned"``, ``"pageable"``, ``"courier"`` (no host copy: the file is read on the way)
            or ``"disk"`` (the same past the page cache); ``auto`` maps what lies in the file in its
            run dtype and pins the rest.
    """

    def __init__(self, target: str, *, host_memory: str = "auto") -> None:
        super().__init__(target)
        self.host_memory = HostMemory(host_memory)
        check_supported(self.host_memory)

    def place(  # noqa: D102  # see Placement
        self, attachment: Attachment, target: nn.Module, device: torch.device
    ) -> None:
        (moving,), staying = split_staying(*bindings_inside(attachment.root, [target]))
        unit = OffloadUnit(
            self.target, target, moving, transient=True, host_memory=self.host_memory
        )
        engine = attachment.engine = engine_of(attachment.root, device)
        attachment.group, attachment.units = UnitGroup([unit]), (unit,)
        engine.attach(attachment.group, weight_sources(attachment.root))
        attachment.handles.append(Undo(lambda: engine.detach([unit])))
        attachment.keep(staying, device, run_device=device)
        attachment.handles.extend(hook_transient(engine, unit))
