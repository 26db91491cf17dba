"""The command `fastvideo-lightning probe`: measures what plans are made with."""

import click

from fastvideo_lightning.cli.options import StrictCommand


@click.command(cls=StrictCommand, short_help="Measure this machine for plans.")
@click.option(
    "--folder",
    default=".",
    metavar="FOLDER",
    help="Where the weights lie: a file of 1 GiB is written there and removed. Default: here.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
def probe(folder: str, debug: bool) -> None:
    """Measure the GPU, its link, the host and its disk once, and keep the figures for plans."""
    from pathlib import Path

    import torch

    from fastvideo_lightning.cli.console import quieten_libraries
    from fastvideo_lightning.cli.errors import usage_errors
    from fastvideo_lightning.plan import probe as probing

    if not debug:
        quieten_libraries()
    if not torch.cuda.is_available():
        rate = probing.measure_matmul(torch.device("cpu"), size=512)
        click.echo(f"CPU, bf16 matrix products: {rate / 1e12:.3g} TFLOP/s")
        click.echo(
            "There is no GPU here, so its link, its memory and its computing rate cannot be "
            "measured, and nothing is kept. A plan for a card that is not here takes its figures "
            'from a table: `fastvideo-lightning plan --gpu "RTX 4090"`.',
            err=True,
        )
        return
    machine = probing.probe(torch.device("cuda", torch.cuda.current_device()))
    with usage_errors():
        machine = probing.with_reads(machine, Path(folder).expanduser())
    path = probing.save_probe(machine)
    for what, rate, unit in (
        ("host to GPU, pinned", machine.link_bytes_per_s / 1e9, "GB/s"),
        ("files in the page cache", machine.cache_bytes_per_s / 1e9, "GB/s"),
        ("files on the disk", machine.disk_bytes_per_s / 1e9, "GB/s"),
        ("bf16 matrix products", machine.matmul_flops / 1e12, "TFLOP/s"),
        ("bf16 attention", machine.attention_flops / 1e12, "TFLOP/s"),
        ("GPU memory", machine.memory_bytes_per_s / 1e9, "GB/s"),
        ("launch of a kernel", machine.launch_s * 1e6, "microseconds"),
        ("CPU, bf16 matrix products", machine.cpu_flops / 1e12, "TFLOP/s"),
    ):
        click.echo(f"{machine.name}, {what}: {rate:.3g} {unit}")
    click.echo(f"Kept in {path}", err=True)
