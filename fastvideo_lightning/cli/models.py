"""The command `fastvideo-lightning models`: which pipelines can be run, and what streams."""

import shutil
import sys
from typing import TYPE_CHECKING

import click

from fastvideo_lightning.cli.options import StrictCommand

if TYPE_CHECKING:
    from fastvideo_lightning.modules.inventory import Entry

_EPILOG = """\b
"family" knows the sizes, frames, steps and guidance that a model was published with, and checks
what is asked for. "generic" takes the pipeline's own defaults. The share is of the denoiser's
bytes: what streams through the GPU and does not stay there. On a terminal the first lines say what
stands where; through a pipe each pipeline is a line whose cells are separated by tabs.
"""


@click.command(cls=StrictCommand, epilog=_EPILOG)
@click.option("--markdown", is_flag=True, help="Print the table as docs/models.md has it.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
@click.pass_context
def models(context: click.Context, /, markdown: bool, debug: bool) -> None:
    """List the video pipelines of the installed diffusers."""
    from fastvideo_lightning.cli.console import quieten_libraries, waiting

    if not (debug or (context.parent and context.parent.params["debug"])):
        quieten_libraries()
    with waiting("loading libraries"):  # seconds
        from fastvideo_lightning.modules.inventory import as_markdown, list_entries

    if markdown:
        click.echo(as_markdown(list_entries()), nl=False)
    else:
        _show(_listed())


def _listed() -> "list[Entry]":
    from rich.console import Console

    from fastvideo_lightning.modules.inventory import list_entries

    with Console(stderr=True).status("") as status:
        return list_entries(lambda name: status.update(name))


def _show(entries: "list[Entry]") -> None:
    from fastvideo_lightning.modules.inventory import HEADER, as_cells, as_lines

    if sys.stdout.isatty():
        lines = as_lines(entries, shutil.get_terminal_size().columns)
    else:  # a file has no width, and programs split at tabs
        lines = ["\t".join(cells) for cells in (HEADER, *map(as_cells, entries))]
    click.echo("\n".join(lines))
