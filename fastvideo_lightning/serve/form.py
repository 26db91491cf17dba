"""What was typed into the page, as a request; what a visitor reads: labels and messages."""

import re
from collections.abc import Sequence
from typing import Any

from fastvideo_lightning.config import SamplingParams, spell_lists
from fastvideo_lightning.serve.jobs import Request

LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "image_path": "First frame",
    "last_image_path": "Last frame",
    "width": "Width",
    "height": "Height",
    "num_frames": "Frames",
    "fps": "Frames per second",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "seed": "Seed",
    "gpu_memory_budget": "GPU memory budget (GiB)",
}

_NAMES = "|".join(sorted(LABELS, key=len, reverse=True))
_PASS = re.compile(r"\bPass (?=an? |one |[a-z_]+=)")
_WITH_VALUE = re.compile(rf"\b({_NAMES})=([^\s,;]*[^\s,;.:)])")
# A short name such as `prompt` is a plain word too: it is a label only where it opens a sentence.
_LONG = "|".join(name for name in LABELS if "_" in name)
_ALONE = re.compile(rf"^(?:{_NAMES})\b|(?<=[.!?] )(?:{_NAMES})\b|\b(?:{_LONG})\b")


def in_page_words(message: str) -> str:
    """Rewrite Python spellings as the page's: `Pass num_frames=17` as `Enter Frames 17`."""
    text = _PASS.sub("Enter ", message)
    text = _WITH_VALUE.sub(lambda match: f"{LABELS[match[1]]} {match[2]}", text)
    text = spell_lists(text, LABELS, LABELS.__getitem__)
    return _ALONE.sub(lambda match: LABELS[match[0]], text)


def explain(error: Exception) -> str:
    """Return what went wrong as a visitor reads it: no traceback, no Python names."""
    text = str(error)
    if not text or not isinstance(error, RuntimeError | ValueError | TypeError | OSError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return in_page_words(text)


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
