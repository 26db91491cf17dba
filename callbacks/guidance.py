"""Two processes that share the calls of a denoiser in a step with guidance."""

import torch

from fastvideo_lightning.config.checks import check_count
from fastvideo_lightning.offload.distributed.branches import BranchGroup, find_branch_group


def check_branches(guidance_parallel: int, context_parallel: int, *, cuda_graphs: bool) -> None:
    """Refuse what two processes that share the calls of a step cannot do.

    Raises:
        TypeError: a number is not a whole one.
        ValueError: a number is another than these processes can be, or calls are captured.
    """
    check_count("guidance_parallel", guidance_parallel, low=1)
    check_count("context_parallel", context_parallel, low=1)
    if guidance_parallel > 2:
        raise ValueError(
            f"guidance_parallel must be 1 or 2, got {guidance_parallel}: guidance makes two "
            "calls a step. Pass guidance_parallel=2."
        )
    if guidance_parallel > 1 and cuda_graphs:
        raise ValueError(
            "guidance_parallel=2 cannot be combined with cuda_graphs=True: a graph is one call. "
            "Leave one of the two out."
        )


def find_branches(
    guidance_parallel: int, context_parallel: int, device: torch.device
) -> BranchGroup | None:
    """The two processes that share the calls of a step; None where each makes all of them.

    Raises:
        ValueError: there are too few processes.
    """
    return None if guidance_parallel == 1 else find_branch_group(device, context_parallel)
