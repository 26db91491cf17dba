"""What the command says on stderr: its own messages, and nothing of the libraries."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from fastvideo_lightning.cli.errors import as_cli_options

# Not their parents: lightning sets the level of `lightning.fabric` when it is imported, torch its.
LIBRARY_LOGGERS = (
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.utilities.rank_zero",
    "torch",
    "torch.utils._pytree",
    "torchao",
    "bitsandbytes",
)


_LOG = logging.getLogger("fastvideo_lightning")


def be_quiet(quiet: bool) -> None:
    """Say nothing from here on but warnings and errors, or everything."""
    _LOG.setLevel(logging.WARNING if quiet else logging.INFO)


def _write(text: str) -> None:
    # Named: left to itself, click looks behind what a progress bar puts in the place of stderr.
    click.echo(text, file=sys.stderr)


def say(text: str) -> None:
    """Write a line about what was done, once for all processes, unless quiet was asked for."""
    if is_first_process() and _LOG.isEnabledFor(logging.INFO):
        _write(text)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what is being waited for, until the context ends; then the line goes."""
    if not (is_first_process() and _LOG.isEnabledFor(logging.INFO) and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def quieten_libraries() -> None:
    """Leave stderr to our own messages: libraries log and warn about what no user can change."""
    if not sys.stderr.isatty() or not _LOG.isEnabledFor(logging.INFO):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of a download
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for name in LIBRARY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    ours, shown = os.path.dirname(os.path.dirname(__file__)), set[str]()

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        text = str(message)
        if filename.startswith(ours) and text not in shown and is_first_process():
            shown.add(text)
            _write(f"Warning: {as_cli_options(text)}")

    warnings.showwarning = show  # type: ignore[assignment]


def is_first_process() -> bool:
    """With several processes, each runs the whole command: the first one speaks for all."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


class _StderrLog(logging.Handler):
    """Write our records to stderr as it is at that moment: a progress bar may stand in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_first_process():
            _write(as_cli_options(self.format(record)))


def show_own_log() -> None:
    """Have what the package logs, from INFO on, written to stderr as plain lines."""
    _LOG.addHandler(_StderrLog())
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
