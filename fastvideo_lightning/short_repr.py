"""The repr of a dataclass that holds arrays."""

from dataclasses import fields
from typing import Any


class ShortRepr:
    """Shows the arrays of a dataclass made with `repr=False` by dtype and shape."""

    def __repr__(self) -> str:
        fields_of: tuple[Any, ...] = fields(self)  # type: ignore[arg-type]
        shown = (f"{field.name}={_show(getattr(self, field.name))}" for field in fields_of)
        return f"{type(self).__name__}({', '.join(shown)})"


def _show(value: Any) -> str:
    is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    return f"<{value.dtype} {list(value.shape)}>" if is_array else repr(value)
