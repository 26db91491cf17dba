"""Quantized weights by name: torchao's weight-only kinds, applied by diffusers' loader.

The weights of linear layers are stored with 8 bits and a scale for each row, and a layer widens
them when it computes: half of bf16's bytes in memory and on the link. The rest of a model keeps its
dtype.
"""

QUANTIZATIONS = {"fp8": "Float8WeightOnlyConfig", "int8": "Int8WeightOnlyConfig"}


def make_quantization(dtype: object) -> object:
    """Return diffusers' quantization configuration for `fp8` or `int8`; None for all else.

    Raises:
        ImportError: If torchao is not installed.
    """
    if not isinstance(dtype, str) or dtype not in QUANTIZATIONS:
        return None
    try:
        import torchao.quantization as kinds
    except ImportError as error:
        raise ImportError(
            f"dtype={dtype!r} needs torchao. Install it: "
            'pip install "fastvideo-lightning[quantized]" (or torchao).'
        ) from error
    from diffusers import TorchAoConfig

    kind = getattr(kinds, QUANTIZATIONS[dtype])()
    return TorchAoConfig(kind)  # type: ignore[no-untyped-call]
