"""Quantized weights by name: torchao's weight-only kinds, applied by diffusers' loader.

The weights of linear layers are stored with 8 bits and a scale for each row, and a layer widens
them when it computes: half of bf16's bytes in memory and on the link. The rest of a model keeps its
dtype.
"""

from fastvideo_lightning.libraries import check_installed

QUANTIZATIONS = {"fp8": "Float8WeightOnlyConfig", "int8": "Int8WeightOnlyConfig"}


def check_quantization(dtype: object) -> None:
    """Raise ImportError where `dtype` needs torchao and it is not installed; imports nothing."""
    if isinstance(dtype, str) and dtype in QUANTIZATIONS:
        check_installed("torchao", extra="quantized", needed_by=f"dtype={dtype!r}")


def make_quantization(dtype: object) -> object:
    """Return diffusers' quantization configuration for `fp8` or `int8`; None for all else.

    Raises:
        ImportError: If torchao is not installed.
    """
    check_quantization(dtype)
    if not isinstance(dtype, str) or dtype not in QUANTIZATIONS:
        return None
    import torchao.quantization as kinds
    from diffusers import TorchAoConfig

    kind = getattr(kinds, QUANTIZATIONS[dtype])()
    return TorchAoConfig(kind)  # type: ignore[no-untyped-call]
