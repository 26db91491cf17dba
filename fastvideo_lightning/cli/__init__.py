"""The command `fastvideo-lightning`.

Read `app` (what runs and how it ends), then a file for each verb; `options` declares what may be
typed, `config_file` reads it from a file, `errors` and `console` say what is wrong and
what is done.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvideo_lightning.cli.app import cli, main, run

_HOME = {
    "cli": "app",
    "main": "app",
    "run": "app",
}

__all__ = [
    "cli",
    "main",
    "run",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
