"""An adapter's file: where the hub's cache has it, and why a pipeline cannot load it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, LogRecord
from pathlib import Path

from fastvideo_lightning.checkpoint import CheckpointError
from fastvideo_lightning.config.lora import find_lora
from fastvideo_lightning.downloads import find_snapshot


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
        reason = " ".join(lines[:2]).rstrip(" .") + (" ..." if len(lines) > 2 else "")
        raise ValueError(
            f"diffusers cannot load {os.fspath(path)} into {pipeline_name} "
            f"({type(error).__name__}: {reason}). Pass one that was made for it."
        ) from error
    finally:
        log.removeFilter(_is_no_error)


def _is_no_error(record: LogRecord) -> bool:
    return record.levelno < ERROR
