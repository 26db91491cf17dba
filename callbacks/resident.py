"""Resident: a component stays on the device. The plain case is a callback too."""

import torch
from torch import nn

from fastvideo_lightning.callbacks.placement import (
    Attachment,
    Placement,
    bindings_inside,
    weight_sources,
)
from fastvideo_lightning.offload.hooks import Undo, hook_calls
from fastvideo_lightning.offload.residents import ResidentSet


class Resident(Placement):
    """Keeps the target's weights on the device from ``attach`` to ``detach``.

    Args:
        target: FQN of a component, such as ``"vae"``.
    """

    def _place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        (inside,), _ = bindings_inside(attachment.root, [target])
        residents = ResidentSet(inside, device, run_device=device)
        attachment.residents.append(residents)
        attachment.handles.append(Undo(residents.unload))
        residents.load(weight_sources(attachment.root))
        attachment.handles.extend(hook_calls(target, self.target, inputs_to=device))
