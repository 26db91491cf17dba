"""Fabric's precision stays unset: weights are cast when they are read, and nothing else is."""

from lightning.fabric.plugins.precision import Precision


def check_precision(precision: Precision) -> None:
    """Raise ValueError if Fabric was given a precision: it would cast behind the pipeline."""
    if type(precision) is not Precision:
        raise ValueError(
            f"Fabric's precision must stay unset, got {precision.precision!r}: it casts "
            "timesteps and weights behind the pipeline. Pass dtype=... to from_pretrained."
        )
