"""Modular pipelines of diffusers: an index that says of each component where it lies.

A component lies in a folder beside the index, or in a folder or a repository that the index names;
a folder beside it comes first, as in diffusers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvideo_lightning.checkpoint.components import first_line, needs_package
from fastvideo_lightning.checkpoint.folder import MODULAR_INDEX, CheckpointError
from fastvideo_lightning.checkpoint.hub import download_part
from fastvideo_lightning.checkpoint.weights import read_json
from fastvideo_lightning.libraries import quiet_imports

_LOCATION = "pretrained_model_name_or_path"


def find_components(
    folder: Path, given: Mapping[str, Path]
) -> tuple[str, dict[str, list[Any]], dict[str, Path]]:
    """Read a modular index and find its components.

    Args:
        folder: Has the index.
        given: Files and folders that take the place of components.

    Returns:
        The name of the pipeline's class; library and class of each component, as
        `model_index.json` has them; and where those lie that are not in a folder of their name.

    Raises:
        CheckpointError: If the index is damaged, or a component cannot be found.
    """
    path = folder / MODULAR_INDEX
    index = read_json(path)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise CheckpointError(
            f"{path} must name a modular pipeline of diffusers in _class_name, got {class_name!r}."
        )
    components, places = {}, {}
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], dict):
            continue
        library, kind, spec = entry
        if library is None or kind is None:  # it was not loaded when the index was written
            hint = spec.get("type_hint")
            library, kind = hint if isinstance(hint, list) and len(hint) == 2 else (None, None)
        if library is None or kind is None:
            continue
        place = given[name] if name in given else _find(path, name, spec)
        if place is not None:
            components[name], places[name] = [library, kind], place
    return class_name, components, places


def _find(index: Path, name: str, spec: Mapping[str, Any]) -> Path | None:
    """Return the folder of a component; what only the hub has is downloaded.

    None where the index names no place: pipelines can do without such a component.
    """
    location, subfolder = spec.get(_LOCATION), spec.get("subfolder") or ""
    if not isinstance(subfolder, str) or not isinstance(location, str | None):
        raise CheckpointError(
            f"{index} says of {name} that it lies in {location!r}, {subfolder!r}, and must name a "
            "folder or a hub id, and a folder in it. Download the checkpoint again."
        )
    for beside in (subfolder, name):
        found = index.parent / beside
        if beside and _is_within(found, index.parent) and found.is_dir():
            return found
    if location is None:
        return None
    there = Path(os.path.expanduser(location))
    if (there / subfolder).is_dir():
        return there / subfolder
    if not there.is_absolute() and location.count("/") == 1:
        return download_part(location, subfolder, revision=spec.get("revision"))
    raise CheckpointError(
        f"Missing component: {index} says that {name} lies in {location!r}, {subfolder!r}, and it "
        f"is not there. Put it into {index.parent / name}, or pass component={{{name!r}: FOLDER}}."
    )


def _is_within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def join_modular(folder: Path, kind: Any, parts: Mapping[str, Any]) -> Any:
    """Put a modular pipeline together of its index and of components that are built.

    Raises:
        CheckpointError: If diffusers can make no pipeline of it, or a component is missing.
        ImportError: If a package is missing.
    """
    try:
        with quiet_imports():
            pipeline = kind.from_pretrained(str(folder))
            pipeline.update_components(**parts)
    except ImportError as error:
        raise needs_package(kind.__name__, error) from error
    except Exception as error:  # whatever an index makes a constructor trip over
        raise CheckpointError(
            f"{folder / MODULAR_INDEX} describes no {kind.__name__} that can be made "
            f"({first_line(error)}). Download the checkpoint again."
        ) from error
    return pipeline
