"""The plan's prediction against what happens: reserved memory and time, over budgets and lengths.

    python -m benchmarks.plan

The weights are random tiles in one file in memory (or on the disk, where an earlier benchmark has
left one), from which every placement streams and reads. Each row begins with the weights and the
matrix library's workspace alone, as a stage does under a budget. Rows are written as they are
measured, the most telling ones first, so a run that is cut off leaves what it has.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks import options
from benchmarks.harness import Deadline, describe_machine, find_device
from benchmarks.plan_decoding import measure_decoding
from benchmarks.plan_report import make_table
from benchmarks.plan_steps import Steps, count_bytes
from fastvideo_lightning.plan import find_card
from fastvideo_lightning.plan.machine import match_card
from fastvideo_lightning.plan.probe import probe

RESULTS = Path(__file__).parent / "results"
ON_DISK = Path(tempfile.gettempdir()) / "random-wan"  # where the other benchmarks keep theirs
IN_MEMORY = Path("/dev/shm/random-wan")  # noqa: S108


@contextmanager
def find_folder(name: str) -> Iterator[Path]:
    """Where the weights of a model are: on the disk if they are there already, else in memory."""
    is_there = (ON_DISK / f"{name}.safetensors").exists()
    has_room = IN_MEMORY.parent.exists() and shutil.disk_usage(
        IN_MEMORY.parent
    ).free > 1.05 * count_bytes(name)
    if is_there or not has_room:
        yield ON_DISK
        return
    try:
        yield IN_MEMORY
    finally:
        shutil.rmtree(IN_MEMORY, ignore_errors=True)


class Results:
    """The files, written anew with every row.

    Args:
        facts: of the machine.
        path: theirs, without what tells them apart; its name may have dots.
    """

    def __init__(self, facts: dict, path: Path) -> None:
        self.facts = {**facts, "rows": []}
        self._json, self._page = (path.parent / f"{path.name}.{kind}" for kind in ("json", "md"))
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, rows: Iterator[dict[str, object]]) -> None:
        """Keep rows as they come."""
        for row in rows:
            self.facts["rows"].append(row)
            self._json.write_text(json.dumps(self.facts, indent=1) + "\n")
            self._page.write_text(make_table(self.facts))
            click.echo(f"{row['model']}, {row['frames']} frames: {row['where']}", err=True)


@click.command()
@click.option("--models", default="wan-14b,wan-1.3b", show_default=True, help="May be none.")
@options.frames("81,17,1")
@click.option("--budgets", default="3,6,8,16,24,40", show_default=True, help="GiB.")
@options.size()
@click.option(
    "--decoding/--no-decoding", default=True, show_default=True, help="The VAE, after the models."
)
@options.name("plan")
@options.limit(400.0)
@options.output
def main(
    models: str,
    frames: tuple[int, ...],
    budgets: str,
    size: tuple[int, int],
    decoding: bool,
    name: str,
    limit_s: float,
    output: Path,
) -> None:
    """Measure and write JSON and a Markdown table."""
    names = [name for name in models.split(",") if name]
    decoded = ["the VAE"] if decoding else []  # Wan's own, whatever the models
    options.check_models(*names, *decoded, instead="--models wan-tiny --no-decoding")
    deadline, device = Deadline(limit_s), find_device()
    machine = probe(device) if device.type == "cuda" else find_card("H100")
    table = match_card(machine.name)
    sides = "x".join(map(str, size))
    facts = {**describe_machine(device), "size": sides, "machine": vars(machine)}
    results = Results(facts, output / name)
    limits = [float(budget) for budget in budgets.split(",")]
    where = (size, machine, table, device, deadline)
    for model in names:
        with find_folder(model) as folder:
            steps = Steps(model, folder, *where)
            results.add(steps.measure(steps.list_places(frames, limits)))
    if decoding:
        results.add(measure_decoding(*where))
    click.echo(make_table(results.facts))


if __name__ == "__main__":
    main()
