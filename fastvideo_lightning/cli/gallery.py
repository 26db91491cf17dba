"""The command `fastvideo-lightning gallery`: a page that shows the videos of a batch."""

import os
from pathlib import Path

import click

from fastvideo_lightning.cli.options import StrictCommand

_EXAMPLES = """\b
Examples:
  fastvideo-lightning generate --prompts prompts.txt --output-path night/
  fastvideo-lightning gallery night/

The page lies in the folder and needs nothing but its videos. It has a picture of each, its prompt,
seed, settings and versions, and the command that makes it again.
"""


@click.command(cls=StrictCommand, epilog=_EXAMPLES, short_help="Show the videos of a batch.")
@click.argument("folder")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
def gallery(folder: str, debug: bool) -> None:
    """Write gallery.html into FOLDER, where a batch made its videos, and print its path."""
    from fastvideo_lightning.cli.console import quieten_libraries, waiting
    from fastvideo_lightning.cli.errors import usage_errors

    if not debug:
        quieten_libraries()
    with usage_errors(), waiting("looking at the videos"):
        from fastvideo_lightning.batch.gallery import write_gallery

        made = write_gallery(Path(os.path.expanduser(folder)))
    click.echo(made.path)
    counts = [f"{made.num_videos} video{'' if made.num_videos == 1 else 's'}"]
    counts += [f"{made.num_failed} failed"] if made.num_failed else []
    counts += [f"{made.num_gone} no longer there"] if made.num_gone else []
    click.echo(", ".join(counts), err=True)
