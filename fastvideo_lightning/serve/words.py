"""What a visitor reads: the labels of the page, and messages that speak of them."""

import re

from fastvideo_lightning.config import spell_lists

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
