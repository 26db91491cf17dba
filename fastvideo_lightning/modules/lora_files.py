"""An adapter's file: where it lies, what it is called, and why it cannot be loaded."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any

from torch import nn

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.hub import find_snapshot
from fastvideo_lightning.checkpoint.weights import read_json
from fastvideo_lightning.config.lora import LoraChoice, find_lora, name_of_lora
from fastvideo_lightning.libraries import unheard
from fastvideo_lightning.modules.adapter_tensors import AdapterError, AdapterTensors

_PEFT_S = re.compile(r"lora_(A|B|embedding|magnitude)")  # what PEFT calls parts of an adapter
_MOST_SHOWN = 300  # characters of a reason: PEFT lists every layer of a file that is not there


def find_adapter(path: str | os.PathLike[str]) -> Path | None:
    """Return an adapter's file, of a hub id the cache's; None: diffusers is to ask the hub for one.

    Raises:
        FileNotFoundError: If there is none; of a hub id, if neither the hub can be reached nor its
            cache has one.
    """
    found = find_lora(path)
    if found is not None:
        return found
    try:
        return find_lora(find_snapshot(os.fspath(path)))
    except CheckpointError as error:
        raise FileNotFoundError(f"The LoRA {error}") from error
    except FileNotFoundError:  # of a snapshot without one, or with several
        return None


def read_adapter(path: str | os.PathLike[str], found: Path | None) -> AdapterTensors:
    """Read an adapter's tensors, and what stands beside them.

    PEFT writes the settings of an adapter into a file of its own, `adapter_config.json`.

    Args:
        path: As the user named it.
        found: The file; None: diffusers is to ask the hub for one.

    Raises:
        AdapterError: If one half of a pair is missing.
    """
    from diffusers.loaders.lora_base import _fetch_state_dict

    how = ("use_safetensors", "local_files_only", "cache_dir", "force_download", "proxies")
    fetch: Any = _fetch_state_dict
    tensors, metadata, header = fetch(
        os.fspath(path) if found is None else str(found.parent),
        weight_name=None if found is None else found.name,
        **dict.fromkeys((*how, "token", "revision", "subfolder", "user_agent")),
        allow_pickle=False,
        return_file_metadata=True,
    )
    if found is not None and found.name == "adapter_model.safetensors":
        beside = found.parent / "adapter_config.json"
        if beside.is_file():
            header = {**(header or {}), **read_json(beside)}
    file = AdapterTensors(os.fspath(path), dict(tensors), header or {}, metadata)
    file.check_pairs()
    return file


def name_of_adapter(path: str | os.PathLike[str]) -> str:
    """Return a name for an adapter by its file, that torch can give to a layer."""
    return _freed(name_of_lora(path))


def name_each(choices: Iterable[LoraChoice]) -> list[str]:
    """Return a name for each: as `name_of_adapter`, with a number where several have the same."""
    names: list[str] = []
    for choice in choices:
        found = find_lora(choice.path)
        name = name_of_adapter(choice.path if found is None else found)
        numbered = (f"{name}_{number}" for number in count(2))
        names.append(next(each for each in chain([name], numbered) if each not in names))
    return names


def check_adapter_name(name: object) -> None:
    """Raise ValueError where PEFT cannot call an adapter so."""
    if name is None or (isinstance(name, str) and "." not in name and _is_free(name)):
        return
    instead = _freed(str(name).replace(".", "_"))
    if isinstance(name, str) and "." not in name:
        raise ValueError(
            f"A LoRA cannot be named {name!r}, which torch or PEFT call something of their own. "
            f"Pass name={instead!r}."
        )
    raise ValueError(
        f"The name of a LoRA must be text without dots, got {name!r}. Pass name={instead!r}."
    )


def _freed(name: str) -> str:
    name = _PEFT_S.sub(r"lora\1", name)
    return name if _is_free(name) else f"{name}_lora"


def _is_free(name: str) -> bool:
    """Whether torch can call a submodule and a parameter so, and PEFT tells it from a part."""
    taken = (nn.ModuleDict(), nn.ParameterDict())
    is_torchs = any(hasattr(each, name) for each in taken)
    return bool(name) and not is_torchs and not _PEFT_S.search(name)


@contextmanager
def explained(path: str | os.PathLike[str], pipeline_name: str) -> Iterator[None]:
    """Have diffusers' loader fail with what was loaded into what, and with what to do."""
    try:
        with unheard(_is_said_anyway):
            yield
    except AdapterError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise
        lines = str(error).split("\n\t")
        text = " ".join(lines[:2])
        reason = text[:_MOST_SHOWN].rstrip(" .")
        reason += " ..." if len(lines) > 2 or len(text) > _MOST_SHOWN else ""
        raise ValueError(
            f"diffusers cannot load {os.fspath(path)} into {pipeline_name} "
            f"({type(error).__name__}: {reason}). Pass one that was made for it."
        ) from error


def _is_said_anyway(record: LogRecord) -> bool:
    """Whether a line of diffusers' log tells of what is an error here, at length."""
    if record.name == "diffusers.loaders.peft":
        return record.levelno >= ERROR
    text = record.getMessage() if record.name == "diffusers.utils.peft_utils" else ""
    return "unexpected keys" in text or "missing keys" in text
