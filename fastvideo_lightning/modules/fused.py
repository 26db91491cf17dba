"""Adapters that were added to the weights: what cannot be done meanwhile.

A layer whose weights hold adapters computes by its weights alone. One that is switched on beside
them would not count; and what is switched off, PEFT takes out in the midst of a step, of the copy
on the device, while the host's keeps it. So adapters are switched before they are fused, or after
they were taken out.
"""

from collections.abc import Iterable

from torch import nn


def check_not_fused(layers: Iterable[nn.Module], verb: str) -> None:
    """Raise RuntimeError where adapters are in the weights, so that `verb` would not count."""
    fused = {name for layer in layers for name in getattr(layer, "merged_adapters", ())}
    if fused:
        raise RuntimeError(
            f"{verb} cannot be called while adapters are fused into the weights (fused are: "
            f"{', '.join(sorted(fused))}). Call unfuse_lora() first."
        )
