"""The command `fastvideo-lightning`.

Read `app` (what runs and how it ends), then a file for each verb; `options` declares what may be
typed, `config_file` reads it from a file, `errors` and `console` say what is wrong and
what is done.
"""

from typing import TYPE_CHECKING

from fastvideo_lightning.libraries import hand_on

if TYPE_CHECKING:
    from fastvideo_lightning.cli.app import cli as cli
    from fastvideo_lightning.cli.app import main as main
    from fastvideo_lightning.cli.app import run as run

_HOME = {
    "cli": "app",
    "main": "app",
    "run": "app",
}

__all__ = list(_HOME)


__getattr__ = hand_on(__name__, _HOME)
