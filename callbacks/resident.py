"""Resident: a component stays on the device. The plain case is a callback too."""

import torch
from torch import nn

from fastvideo_lightning.callbacks.guidance import check_branches, find_branches
from fastvideo_lightning.callbacks.placement import Attachment, Placement
from fastvideo_lightning.offload.call_groups import ResidentRuns, group_calls
from fastvideo_lightning.offload.distributed.branches import OnTwoProcesses


class Resident(Placement):
    """Keeps the target's weights on the device from ``attach`` to ``detach``.

    Args:
        target: FQN of a component, such as ``"vae"``.
        cuda_graphs: within a batch, capture a call of the target and replay it: for steps so small
            that launching them takes longest. On CUDA only.
        guidance_parallel: 2: within a batch, of the two calls of the target in a step with guidance
            this process makes one and another process the other, the same bits. Both run the whole
            pipeline with the same seed.
        context_parallel: processes with consecutive ranks that make a call together.

    Raises:
        ValueError: two arguments cannot be combined.
    """

    def __init__(
        self,
        target: str,
        *,
        cuda_graphs: bool = False,
        guidance_parallel: int = 1,
        context_parallel: int = 1,
    ) -> None:
        check_branches(guidance_parallel, context_parallel, cuda_graphs=cuda_graphs)
        super().__init__(target)
        self.cuda_graphs = cuda_graphs
        self.guidance_parallel = guidance_parallel
        self.context_parallel = context_parallel

    def place(  # noqa: D102  # see Placement
        self, attachment: Attachment, target: nn.Module, device: torch.device
    ) -> None:
        attachment.stay(device)
        if self.cuda_graphs and device.type == "cuda":
            attachment.graph(target, self.target, device)
        branches = find_branches(self.guidance_parallel, self.context_parallel, device)
        if branches is not None:
            runs = attachment.runs = ResidentRuns(device)
            together = OnTwoProcesses(branches, lambda: False)
            attachment.handles.extend(group_calls(together, runs, target, self.target))
