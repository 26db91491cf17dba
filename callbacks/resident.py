"""Resident: a component stays on the device. The plain case is a callback too."""

import torch
from torch import nn

from fastvideo_lightning.callbacks.placement import Attachment, Placement, bindings_inside
from fastvideo_lightning.offload.hooks import hook_calls


class Resident(Placement):
    """Keeps the target's weights on the device from ``attach`` to ``detach``.

    Args:
        target: FQN of a component, such as ``"vae"``.
        cuda_graphs: within a batch, capture a call of the target and replay it: for steps so small
            that launching them takes longest. On CUDA only.
    """

    def __init__(self, target: str, *, cuda_graphs: bool = False) -> None:
        super().__init__(target)
        self.cuda_graphs = cuda_graphs

    def _place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        (inside,), _ = bindings_inside(attachment.root, [target])
        attachment.keep(inside, device, run_device=device)
        attachment.handles.extend(hook_calls(target, self.target, inputs_to=device))
        if self.cuda_graphs and device.type == "cuda":
            attachment.graph(target, self.target, device)
