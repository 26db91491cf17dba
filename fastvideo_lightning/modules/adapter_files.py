"""An adapter's file: where the hub's cache has it, and what of it a pipeline cannot load."""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any

from torch import nn

from fastvideo_lightning.checkpoint import CheckpointError
from fastvideo_lightning.config.lora import find_lora
from fastvideo_lightning.downloads import find_snapshot

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


def check_adapter_name(name: object) -> None:
    """Raise ValueError where PEFT cannot call an adapter so."""
    if name is not None and (not isinstance(name, str) or "." in name):
        instead = str(name).replace(".", "_")
        raise ValueError(
            f"The name of a LoRA must be text without dots, got {name!r}. Pass name={instead!r}."
        )


@contextmanager
def explained(path: str | os.PathLike[str], pipeline_name: str) -> Iterator[None]:
    """Have diffusers' loader fail with what was loaded into what, and with what to do."""
    from diffusers.utils.logging import get_logger

    log = get_logger("diffusers.loaders.peft")
    log.addFilter(_is_no_error)  # it writes what it raises, all of the lines
    try:
        yield
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
    finally:
        log.removeFilter(_is_no_error)


@contextmanager
def telling_unplaced(path: str | os.PathLike[str], pipeline: Any) -> Iterator[None]:
    """Warn, once for all, of weights of a file that the pipeline's models have no place for.

    Where none has a place, diffusers' loader fails.
    """
    from diffusers.utils.logging import get_logger

    unplaced: list[str] = []

    def note(_: nn.Module, keys: Any) -> None:
        unplaced.extend(keys.unexpected_keys)

    log = get_logger("diffusers.utils.peft_utils")
    with ExitStack() as noting:
        for model in filter(_takes_adapters, pipeline.components.values()):
            noting.callback(model.register_load_state_dict_post_hook(note).remove)
        log.addFilter(_tells_no_unplaced)  # it lists every one
        noting.callback(log.removeFilter, _tells_no_unplaced)
        yield
    if unplaced:
        warnings.warn(
            f"{len(unplaced)} weights of the LoRA {os.fspath(path)} found no place in the model "
            f"and are left out, such as {unplaced[0]}. It was most likely made for another model: "
            "pass one that was made for this one.",
            stacklevel=3,
        )


def _takes_adapters(component: object) -> bool:
    return hasattr(component, "load_lora_adapter")


def _tells_no_unplaced(record: LogRecord) -> bool:
    text = record.getMessage()
    return "unexpected keys" not in text or "missing keys" in text


def _is_no_error(record: LogRecord) -> bool:
    return record.levelno < ERROR
