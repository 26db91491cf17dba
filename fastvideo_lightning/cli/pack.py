"""The command `fastvideo-lightning pack`: writes a checkpoint in the dtype it runs in on a GPU."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvideo_lightning.checkpoint.folder import readable
from fastvideo_lightning.checkpoint.parts import find_parts
from fastvideo_lightning.cli.options import ComponentType, StrictCommand, join_components

if TYPE_CHECKING:
    from fastvideo_lightning.pack import Packing, Progress

_EXAMPLES = """\b
Examples:
  fastvideo-lightning pack Wan-AI/Wan2.1-T2V-14B-Diffusers wan-14b
  fastvideo-lightning generate --model wan-14b --prompt "..."

MODEL is a folder in diffusers' layout, a hub id, tiny-shapes, or a file with --base. OUT becomes
such a folder too. A run that was stopped goes on where it was when it is started again.
"""


@click.command(
    cls=StrictCommand, epilog=_EXAMPLES, short_help="Write a checkpoint as it runs on a GPU."
)
@click.argument("model")
@click.argument("out")
@click.option("--base", help="Folder or hub id with the rest, where MODEL is a file.")
@click.option(
    "--component",
    type=ComponentType(),
    multiple=True,
    help="File or folder in the place of a component; may be given several times.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Of the weights; auto: bf16 (Wan's VAE: fp32). [default: auto]",
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--variant", help="Variant of the weight files to read, such as fp16.")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights, which can run code.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
@click.pass_context
def pack(
    context: click.Context,
    /,
    model: str,
    out: str,
    base: str | None,
    component: tuple[tuple[str, str], ...],
    dtype: str,
    revision: str | None,
    variant: str | None,
    allow_pickle: bool,
    debug: bool,
) -> None:
    """Write MODEL into the folder OUT as it runs on a GPU, and print OUT.

    Weights are cast to the dtype they run in, and each block lies in one piece, so that the files
    themselves can be what the GPU is fed from.
    """
    from fastvideo_lightning.cli.console import quieten_libraries
    from fastvideo_lightning.cli.errors import usage_errors

    if not (debug or (context.parent and context.parent.params["debug"])):
        quieten_libraries()
    with usage_errors():
        places = join_components(component)
        with readable(model):
            find_parts(model, base=base, component=places, revision=revision)
        # Seconds of imports from here on.
        from fastvideo_lightning.pack import plan_packing

        packing = plan_packing(
            model,
            out,
            base=base,
            component=places,
            dtype=dtype,
            revision=revision,
            variant=variant,
            allow_pickle=allow_pickle,
        )
        packing.check_space()
    from rich.filesize import decimal

    started = time.perf_counter()
    with _show_progress(packing) as progress:
        packing.write(progress)
    click.echo(packing.out)
    elapsed_s = time.perf_counter() - started
    click.echo(f"{decimal(packing.size_bytes)}: packed in {elapsed_s:.1f} s", err=True)


@contextmanager
def _show_progress(packing: "Packing") -> Iterator["Progress"]:
    """Draw a bar on stderr; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    drawn = sys.stderr.isatty() and not console.is_dumb_terminal
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    # Every byte is written once and read back once.
    total = 2 * sum(packed.tensors[-1].end for packed in packing.unfinished.values())
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=not drawn
    ) as bar:
        task = bar.add_task("pack", total=total)

        def advance(path: Path, size_bytes: int) -> None:
            bar.update(task, advance=size_bytes, description=str(path))

        yield advance
