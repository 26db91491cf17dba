"""What was typed into the page, as a request."""

from collections.abc import Sequence
from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.serve.jobs import Request

# In the order in which the page hands them over.
FIELDS = (
    "prompt",
    "negative_prompt",
    "image_path",
    "last_image_path",
    "width",
    "height",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "gpu_memory_budget",
)


def read_form(values: Sequence[Any]) -> Request:
    """Make a request of the fields' values; an empty one is the model's own default.

    Raises:
        TypeError, ValueError: If a value is impossible whatever the model.
    """
    given = dict(zip(FIELDS, values, strict=True))
    prompt, budget_gib = given.pop("prompt"), given.pop("gpu_memory_budget")
    filled = {name: _whole(value) for name, value in given.items() if value not in (None, "")}
    return Request(
        prompt="" if prompt is None else prompt,
        params=SamplingParams(**filled),
        budget_gib=_number_or_text(budget_gib),
    )


def _number_or_text(value: Any) -> Any:
    """Return 12.5 for what was typed as 12.5, text for any other text, and None for nothing."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value).strip() or None if value is not None else None


def _whole(value: Any) -> Any:
    """Return 16 for 16.0: a browser knows one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
