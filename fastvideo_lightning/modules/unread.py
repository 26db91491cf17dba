"""Moving a module whose weights still wait in their files."""

from typing import Any, Self

import torch
from torch import nn


class WaitsInFiles(nn.Module):
    """A module that may be moved to the CPU before its weights are read, and nowhere else.

    A Trainer's own strategies do the former whenever they end, also where all they had to say was
    that there is no `training_step`.
    """

    def cpu(self) -> Self:
        """Move it to the CPU: what has not been read is read there."""
        return self if _find_unread(self) else super().cpu()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move it.

        Raises:
            RuntimeError: If weights have not been read yet, and it is not to the CPU.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        fqn = None if device is None else _find_unread(self)
        if fqn is None:
            return super().to(*args, **kwargs)
        if device.type == "cpu" and dtype is None:
            return self
        raise RuntimeError(
            f"The weights of {fqn} have not been read yet, so they cannot be moved to {device}. "
            "Placement callbacks read them; under lightning.Trainer pass "
            "strategy=TrainerHostResidentStrategy(), which moves none."
        )


def _find_unread(module: nn.Module) -> str | None:
    """Return the name of a child with weights on meta, or None."""
    children = module.named_children()
    return next((n for n, child in children if any(w.is_meta for w in child.parameters())), None)
