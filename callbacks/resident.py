"""Resident: a component stays on the device. The plain case is a callback too."""

import torch
from torch import nn

from fastvideo_lightning.callbacks.attachment import Attachment
from fastvideo_lightning.callbacks.placement import Placement, bindings_inside
from fastvideo_lightning.offload.hooks import hook_calls


class Resident(Placement):
    """Keeps the target's weights on the device from ``attach`` to ``detach``.

    Args:
        target: FQN of a component, such as ``"vae"``.
    """

    def _place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        (inside,), _ = bindings_inside(attachment.root, [target])
        attachment.keep(inside, device, run_device=device)
        attachment.handles.extend(hook_calls(target, self.target, inputs_to=device))
