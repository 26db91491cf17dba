"""What a user gives in the place of components, seen beside what the pipeline has there."""

import filecmp
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.parts import is_gguf
from fastvideo_lightning.checkpoint.weights import read_json, read_notes

_NOISE = re.compile(r"(?:^|[^a-z])(high|low)[ _.-]?noise", re.IGNORECASE)
_SHORT = re.compile(r"(?:^|[^a-z])(high|low)(?=[^a-z]|$)", re.IGNORECASE)
_EXPERTS = {"transformer": "high", "transformer_2": "low"}
_CONFIGS = ("config.json", "scheduler_config.json")


def check_replacements(places: Mapping[str, Path], classes: Mapping[str, type]) -> None:
    """Look at what takes the place of components, without reading a weight where none is alike.

    Args:
        places: Files and folders, by the name of the component that each is.
        classes: Of every component of the pipeline.

    Raises:
        CheckpointError: If a folder holds a component of another class.
        ValueError: If two components of one class are given files with the same bytes.
    """
    for name, place in places.items():
        if place.is_dir():
            _check_class(name, place, classes[name])
    files = {name: place for name, place in places.items() if place.is_file()}
    for one, other in combinations(files, 2):
        if classes[one] is classes[other] and filecmp.cmp(files[one], files[other], shallow=False):
            raise ValueError(
                f"component {one}={files[one]} and {other}={files[other]} are the same weights, "
                f"and {one} and {other} are two experts. Pass the file of each."
            )
    if _EXPERTS.keys() <= classes.keys():
        for name in _EXPERTS.keys() & files.keys():
            _check_noise(name, files[name])


def _check_class(name: str, folder: Path, wanted: type) -> None:
    """Raise CheckpointError where a folder's configuration is of another class."""
    config = next((folder / each for each in _CONFIGS if (folder / each).is_file()), None)
    if config is None:
        return
    stored = read_json(config)
    own: Any = getattr(getattr(wanted, "config_class", None), "model_type", None)
    found, needed = stored.get("_class_name"), wanted.__name__
    if own and found is None:  # of transformers, where several classes have one kind of weights
        found, needed = stored.get("model_type"), own
    if found is not None and found != needed:
        raise CheckpointError(
            f"component {name}={folder} is a {found}, as {config.name} says, and the pipeline has "
            f"a {needed} as its {name}. Pass the {name} of a model of the same kind."
        )


def _check_noise(name: str, file: Path) -> None:
    """Warn where a file of one expert, by its name or its header, takes the place of the other.

    The experts of Wan 2.2 have weights of the same names and shapes, so that nothing else tells.
    """
    wanted = _EXPERTS[name]
    other = next(each for each in _EXPERTS if each != name)
    name_says = _NOISE.findall(file.stem) or _SHORT.findall(file.stem)
    header_says = _NOISE.findall(_notes_in(file))
    for where, words in (("its name", name_says), ("its header", header_says)):
        said = {word.lower() for word in words}
        if len(said) == 1 and wanted not in said:
            warnings.warn(
                f"component {name}={file}: {where} says {said.pop()} noise, and {name} is the "
                f"expert for {wanted} noise. If it is the other one, pass it as {other}.",
                stacklevel=2,
            )
            return


def _notes_in(file: Path) -> str:
    """Return the texts in a safetensors file's header; nothing of a GGUF file."""
    notes: dict[str, Any] = {}
    if not is_gguf(file):
        with suppress(CheckpointError):  # where the weights are read, the damage is named
            notes = read_notes(file)
    return " ".join(str(text) for name, text in notes.items() if "hash" not in name)
