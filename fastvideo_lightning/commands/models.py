"""The command `fastvideo-lightning models`: which pipelines can be run, and what streams."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fastvideo_lightning.inventory import Entry

_EPILOG = """\b
"family" knows the sizes, frames, steps and guidance that a model was published with, and checks
what is asked for. "generic" takes the pipeline's own defaults. The share is of the denoiser's
bytes: what streams through the GPU and does not stay there. Through a pipe each pipeline is a line
whose cells are separated by tabs.
"""


@click.command(epilog=_EPILOG)
@click.option("--markdown", is_flag=True, help="Print the table as docs/models.md has it.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
@click.pass_context
def models(context: click.Context, /, markdown: bool, debug: bool) -> None:
    """List the video pipelines of the installed diffusers."""
    from fastvideo_lightning.messages import quieten_libraries, waiting

    if not (debug or (context.parent and context.parent.params["debug"])):
        quieten_libraries()
    with waiting("loading libraries"):  # seconds
        from fastvideo_lightning.inventory import as_markdown, list_entries

    if markdown:
        click.echo(as_markdown(list_entries()), nl=False)
    else:
        _show(_listed())


def _listed() -> "list[Entry]":
    from rich.console import Console

    from fastvideo_lightning.inventory import list_entries

    with Console(stderr=True).status("") as status:
        return list_entries(lambda name: status.update(name))


def _show(entries: "list[Entry]") -> None:
    from rich.console import Console
    from rich.table import Table

    from fastvideo_lightning.inventory import HEADER, as_cells

    console = Console()
    if not console.is_terminal:  # a file has no width, and programs split at tabs
        for cells in (HEADER, *map(as_cells, entries)):
            click.echo("\t".join(cells))
        return
    table = Table(box=None, pad_edge=False)
    for title in HEADER:
        table.add_column(title, no_wrap=title == HEADER[0], overflow="fold")
    for entry in entries:
        table.add_row(*as_cells(entry))
    console.print(table)
