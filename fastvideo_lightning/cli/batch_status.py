"""The command `fastvideo-lightning batch-status`: how a batch stands, and who makes what."""

from datetime import timedelta
from pathlib import Path

import click

from fastvideo_lightning.cli.errors import usage_errors
from fastvideo_lightning.cli.options import StrictCommand


@click.command("batch-status", cls=StrictCommand, short_help="Show how a batch stands.")
@click.argument("folder")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
def batch_status(folder: str, debug: bool) -> None:
    """Show what is done of a batch, what failed, who has what in work, and when it will end.

    FOLDER is the --output-path of the batch. Nothing is joined and nothing is changed.
    """
    from fastvideo_lightning.batch.status import read_status

    with usage_errors():
        status = read_status(Path(folder).expanduser())
    failed = f", {status.num_failed} failed" if status.num_failed else ""
    left = "nobody is at work" if status.num_left is None else f"{status.num_left} to be made"
    click.echo(f"{status.num_done} done{failed}, {left}")
    for worker in status.workers:
        now = f", now {worker.now}" if worker.now else ""
        click.echo(f"{worker.name} since {worker.started}: {worker.num_done} done{now}")
    if status.num_left and status.left_s is not None:
        click.echo(f"About {timedelta(seconds=round(status.left_s))} to go")
