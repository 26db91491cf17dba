"""LoRA files as a user names them."""

import os
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Self

DEFAULT_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives to a LoRA in a folder."""


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA, how strongly it counts, and for which denoiser it is.

    Attributes:
        path: A safetensors file, a folder with one, or a hub id.
        weight: 1 is as it was trained.
        denoiser: FQN of one of a model's denoisers; None for the first.

    Raises:
        ValueError: If the weight is not a finite number.
        FileNotFoundError: If there is no such file, or none in the folder.
    """

    path: str
    weight: float = 1.0
    denoiser: str | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise ValueError(f"The weight of a LoRA must be a finite number, got {self.weight}.")
        object.__setattr__(self, "path", os.path.expanduser(self.path))
        find_lora(self.path)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PATH`, with `:WEIGHT` and `@DENOISER` behind it or without, in any order.

        What is the path of a file or folder as it stands is that, whatever signs it holds.
        """
        weight: float | None = None
        denoiser: str | None = None
        path = text
        while not Path(path).expanduser().exists():
            before, colon, number = path.rpartition(":")
            front, at, name = path.rpartition("@")
            if colon and weight is None and _is_number(number):
                path, weight = before, float(number)
            elif at and denoiser is None and name.isidentifier():
                path, denoiser = front, name
            else:
                break
        return cls(path, 1.0 if weight is None else weight, denoiser)


def find_lora(path: str | os.PathLike[str]) -> Path | None:
    """Return the file that is meant; None for a hub id.

    Raises:
        FileNotFoundError: If there is no such file, or not one alone in the folder.
    """
    text = os.path.expanduser(path)
    place = Path(text)
    if place.is_file():
        return place
    if place.is_dir():
        files = sorted(place.glob("*.safetensors"))
        if place / DEFAULT_FILE in files:
            return place / DEFAULT_FILE
        if len(files) == 1:
            return files[0]
        named = f": {', '.join(file.name for file in files)}" if files else ""
        raise FileNotFoundError(
            f"{place} must hold {DEFAULT_FILE} or one other safetensors file, and it holds "
            f"{len(files)}{named}. Pass the path of the file."
        )
    is_hub_id = text.count("/") == 1 and not place.suffix and not text.startswith((".", "/", "~"))
    if not is_hub_id:
        raise FileNotFoundError(
            f"There is no LoRA {text!r}. Pass a safetensors file, a folder or a hub id."
        )
    return None


def name_of_lora(path: str | os.PathLike[str]) -> str:
    """Return a name for it: the file's, or the folder's of a file with diffusers' own name."""
    place = Path(path)
    stem = place.resolve().parent.name if place.name == DEFAULT_FILE else place.stem
    return stem.replace(".", "_") or "lora"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
