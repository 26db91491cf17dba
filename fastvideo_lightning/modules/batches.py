"""What a loader hands to `predict_step`."""

from collections.abc import Mapping
from typing import Any

import torch


def uncollated(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch of one prompt with the lists and tensors of a collating loader taken apart.

    Raises:
        ValueError: If it holds several prompts.
    """
    return {name: _single(name, value) for name, value in batch.items()}


def _single(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return value
    if len(value) != 1:
        raise ValueError(
            f"A batch must hold one prompt, got {len(value)} values of {name!r}. "
            "Pass batch_size=1 or batch_size=None to the DataLoader."
        )
    return value[0]
