"""What the engine must reach, beside what was measured: met, missed, or not measured yet.

    python -m benchmarks.targets

Reads all results that `benchmarks.streaming`, `benchmarks.stages`, `benchmarks.multi_gpu` and
`benchmarks.prompts` have written to a folder and writes `targets.md` beside them. Every ratio is of
figures from one run.

A figure that must be reached: what it may be, and how it is read off the results.

What two GPUs must reach, read off `multi_gpu`, `prompts` and `killed_rank`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.report import bound_ms, link_ms
from benchmarks.stages import encode_ratio


class Results:
    """What was measured, of however many runs; where two hold the same, the first one counts.

    Args:
        contents: of the runs' files, by name.
    """

    def __init__(self, contents: dict[str, dict[str, Any]]) -> None:
        self.contents = contents

    def row(self, model: str, mode: str, frames: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """A row of a streaming run and the run's facts; KeyError where there is none."""
        for content in self.contents.values():
            for row in content.get("rows", ()):
                if (content["model"], row["mode"], row["frames"]) == (model, mode, frames):
                    return content, row
        raise KeyError(mode)

    def part(self, name: str) -> Any:
        """A part of a run of the stages; KeyError where there is none."""
        for content in self.contents.values():
            if name in content:
                return content[name]
        raise KeyError(name)


Read = Callable[[Results], float]


class Target(NamedTuple):
    """One line of the table.

    Attributes:
        name: what is measured.
        bound: what it may not be past, as text.
        limit: the same as a number; the most, or with ``is_least`` the least.
        read: takes the figure from the results; KeyError where they lack it.
        is_least: whether more is better.
        form: how the figure is written.
    """

    name: str
    bound: str
    limit: float
    read: Read
    is_least: bool = False
    form: str = "{:.3f}"


PREFIXES = ("multi-gpu-", "prompts-", "killed-")
SHARDED = "streamed-gather"
Run = dict[str, Any]


def _in_one_run(read: Callable[[Run], float]) -> Callable[[Results], float]:
    """From the first run that has all the rows; KeyError where none has."""

    def find(results: Results) -> float:
        for run in results.contents.values():
            try:
                return read(run)
            except KeyError:
                continue
        raise KeyError("no run has it")

    return find


def _row(run: Run, mode: str, frames: int) -> dict[str, Any]:
    for row in run["rows"]:
        if run["model"] == "wan-14b" and row.get("mode") == mode and row["frames"] == frames:
            return dict(row)
    raise KeyError(mode)


def _ratio(mode: str, to: str, frames: int) -> Callable[[Results], float]:
    return _in_one_run(
        lambda run: _row(run, mode, frames)["step_ms"] / _row(run, to, frames)["step_ms"]
    )


def _reserved(frames: int) -> Callable[[Results], float]:
    return _in_one_run(lambda run: float(_row(run, f"{SHARDED}+context", frames)["reserved_gb"]))


def _share_of_two(run: Run) -> float:
    rows = [row for row in run["rows"] if row.get("mode", "").startswith(SHARDED)]
    held = [row["host_gb"] for row in rows if not row["mode"].startswith(f"{SHARDED}-pinned")]
    if not held or run["model"] != "wan-14b":
        raise KeyError(SHARDED)
    return float(max(held) * 1e9 / run["weight_bytes"])


def _setup(run: Run) -> float:
    """With the links measured, where that was run."""
    if run["model"] == "wan-14b":
        for mode in ("streamed-auto", SHARDED, f"{SHARDED}+context"):
            for row in run["rows"]:
                if row.get("mode") == mode and row["setup_s"] is not None:
                    return float(row["setup_s"])
    raise KeyError("setup_s")


def _prompts(run: Run) -> float:
    for row in run["rows"]:
        is_told = row.get("processes") == 2 and row["ratio"] is not None
        if is_told and row["equal"] and row["videos"] == 8:
            return float(row["ratio"])
    raise KeyError("processes")


def _until_all_ended(run: Run) -> float:
    """The longest of all ranks' ends; one that left a process never ended."""
    rows = [row for row in run["rows"] if "left" in row]
    if not rows:
        raise KeyError("left")
    return max(float("inf") if row["left"] else float(row["seconds"]) for row in rows)


ON_TWO_GPUS = (
    Target(
        "14B sharded, 1 frame: speed-up over one GPU's streaming",
        ">= 1.9x",
        1.9,
        _ratio("streamed-one", SHARDED, 1),
        is_least=True,
    ),
    Target(
        "14B sharded / FSDP2 with CPU offload, 1 frame",
        "<= 0.85",
        0.85,
        _ratio(SHARDED, "fsdp-cpu-offload", 1),
    ),
    Target(
        "14B sharded / FSDP2 with CPU offload, 17 frames",
        "<= 0.94",
        0.94,
        _ratio(SHARDED, "fsdp-cpu-offload", 17),
    ),
    Target(
        "14B context parallel, sharded / resident, 81 frames",
        "<= 1.03",
        1.03,
        _ratio(f"{SHARDED}+context", "resident+context", 81),
    ),
    Target("the same, reserved per GPU, 17 frames", "<= 3.9 GB", 3.9, _reserved(17), form="{:.2f}"),
    Target("the same, reserved per GPU, 81 frames", "<= 7.6 GB", 7.6, _reserved(81), form="{:.2f}"),
    Target("14B, host bytes per node / weight bytes", "<= 1.01", 1.01, _in_one_run(_share_of_two)),
    Target("set-up of 28 GB, mapped, two GPUs", "<= 3 s", 3, _in_one_run(_setup), form="{:.1f}"),
    Target("8 prompts, wall time on two GPUs / on one", "<= 0.53", 0.53, _in_one_run(_prompts)),
    Target(
        "a rank killed mid-run: all ended",
        "<= 30 s",
        30,
        _in_one_run(_until_all_ended),
        form="{:.1f}",
    ),
)


RESULTS = Path(__file__).parent / "results"
STREAMED = "streamed-mapped"
NOT_MEASURED = "not measured"


def _over_resident(model: str, frames: int, mode: str = STREAMED) -> Read:
    def read(results: Results) -> float:
        _, row = results.row(model, mode, frames)
        if row["beside_ms"] is None:
            raise KeyError("beside_ms")
        return float(row["step_ms"] / row["beside_ms"])

    return read


def _over_bound(model: str, frames: int, mode: str) -> Read:
    def read(results: Results) -> float:
        facts, row = results.row(model, mode, frames)
        return float(row["step_ms"] / bound_ms(facts, row))

    return read


def _link_use(results: Results) -> float:
    facts, row = results.row("wan-14b", STREAMED, 1)
    return float(link_ms(facts, row) / row["step_ms"])


def _figure(name: str, *, mode: str = STREAMED, frames: int = 1) -> Read:
    return lambda results: float(results.row("wan-14b", mode, frames)[1][name])


def _host_share(mode: str) -> Read:
    def read(results: Results) -> float:
        _, row = results.row("wan-14b", mode, 1)
        return float(row["host_bytes"] / row["host_weight_bytes"])

    return read


def _stage(part: str, name: str) -> Read:
    return lambda results: float(results.part(part)[name])


def _cap(frames: int) -> Read:
    def read(results: Results) -> float:
        row = {row["frames"]: row for row in results.part("caps")}[frames]
        return float(row["completes"] and row["equal"])

    return read


TARGETS = (
    Target("14B, 17 frames, step / resident step", "<= 1.01", 1.01, _over_resident("wan-14b", 17)),
    Target(
        "14B, 17 frames, against max(resident, bytes / link)",
        "<= 1.01",
        1.01,
        _over_bound("wan-14b", 17, STREAMED),
    ),
    Target(
        "14B, 17 frames, three slots, step / resident step",
        "<= 1.01",
        1.01,
        _over_resident("wan-14b", 17, "streamed-three-slots"),
    ),
    Target(
        "14B, 17 frames, three slots, a tenth resident, step / resident step",
        "<= 1.01",
        1.01,
        _over_resident("wan-14b", 17, "streamed-three-slots-tenth-resident"),
    ),
    Target("14B, 81 frames, step / resident step", "<= 1.01", 1.01, _over_resident("wan-14b", 81)),
    Target("14B, 1 frame, bytes / step / link rate", ">= 0.97", 0.97, _link_use, is_least=True),
    Target(
        "14B, 1 frame, half of the blocks resident, against half the bytes",
        "<= 1.03",
        1.03,
        _over_bound("wan-14b", 1, "streamed-half-resident"),
    ),
    Target(
        "1.3B, 1 frame, against max(resident, bytes / link)",
        "<= 1.05",
        1.05,
        _over_bound("wan-1.3b", 1, STREAMED),
    ),
    Target(
        "1.3B, 1 frame, `cuda_graphs`, against the same",
        "<= 1.05",
        1.05,
        _over_bound("wan-1.3b", 1, "graphed-streamed"),
    ),
    Target("1.3B, 17 frames / resident", "<= 1.03", 1.03, _over_resident("wan-1.3b", 17)),
    Target(
        "1.3B, 17 frames, compiled blocks, streamed / resident compiled",
        "<= 1.03",
        1.03,
        _over_resident("wan-1.3b", 17, "compiled-streamed"),
    ),
    Target(
        "reserved GPU memory, 14B, 81 frames",
        "<= 9.2 GB",
        9.2,
        _figure("reserved_gb", frames=81),
        form="{:.2f}",
    ),
    Target(
        "reserved GPU memory, 14B, 1 frame", "<= 2.3 GB", 2.3, _figure("reserved_gb"), form="{:.2f}"
    ),
    Target("host bytes mapped / weight bytes", "<= 1.01", 1.01, _host_share(STREAMED)),
    Target("host bytes pinned / weight bytes", "<= 1.01", 1.01, _host_share("streamed-pinned")),
    Target("set-up of 28 GB, mapped", "<= 2 s", 2, _figure("setup_s"), form="{:.1f}"),
    Target(
        "set-up of 28 GB, pinned",
        "<= 10 s",
        10,
        _figure("setup_s", mode="streamed-pinned"),
        form="{:.1f}",
    ),
    Target(
        "UMT5-XXL streamed, 512 tokens, against its bytes / link",
        "<= 1.10",
        1.10,
        lambda results: encode_ratio(results.part("encode")),
    ),
    Target(
        "UMT5-XXL streamed, reserved",
        "<= 1.5 GB",
        1.5,
        lambda results: float(results.part("encode")["streamed"]["reserved_gb"]),
        form="{:.2f}",
    ),
    Target(
        "VAE decode after the last step, exposed wait",
        "<= 20 ms",
        20,
        _stage("moments", "decode_wait_ms"),
        form="{:.1f}",
    ),
    Target(
        "two-expert hand-over step against the median step",
        "<= +50 ms",
        50,
        _stage("moments", "hand_over_excess_ms"),
        form="{:+.1f}",
    ),
    Target(
        "whole video, 14B, 17 frames under 8 GiB: completes, equal",
        "yes",
        1,
        _cap(17),
        is_least=True,
        form="{:.0f}",
    ),
    Target(
        "whole video, 14B, 81 frames under 12 GiB: completes, equal",
        "yes",
        1,
        _cap(81),
        is_least=True,
        form="{:.0f}",
    ),
    Target(
        "50 videos in a row, growth of reserved memory after the third",
        "< 1 %",
        0.01,
        _stage("flat", "reserved_growth"),
        form="{:.2%}",
    ),
    Target(
        "50 videos in a row, growth of host memory after the third",
        "< 1 %",
        0.01,
        _stage("flat", "host_rss_growth"),
        form="{:.2%}",
    ),
)


def judge(target: Target, results: Results) -> tuple[str, str]:
    """The figure as text, and `met`, `missed` or `not measured`."""
    try:
        figure = target.read(results)
    except KeyError:
        return "-", NOT_MEASURED
    is_met = figure >= target.limit if target.is_least else figure <= target.limit
    return target.form.format(figure), "met" if is_met else "**missed**"


def by_run(results: Results) -> list[Results]:
    """Each run by itself, in the order of their names: what was measured twice is told twice."""
    return [Results({name: content}) for name, content in results.contents.items()]


def make_page(results: Results, over_gpus: Results) -> str:
    """The tables, with where their figures come from; what was measured twice shows both times."""
    lines = ["# What the engine must reach", "", *make_table(TARGETS, results)]
    lines += ["", "## Over two GPUs", "", *make_table(ON_TWO_GPUS, over_gpus)]
    return "\n".join(lines) + "\n"


def make_table(targets: Sequence[Target], results: Results) -> list[str]:
    """The lines of one table."""
    lines = ["Measured in:", ""]
    for name, content in results.contents.items():
        lines.append(f"- `{name}`: {content['device']}, commit {content['commit']}")
    lines += ["", "| | must | measured | |", "|---|---|---|---|"]
    occasions = by_run(results)
    for target in targets:
        judged = [judge(target, occasion) for occasion in occasions]
        judged = [pair for pair in judged if pair[1] != NOT_MEASURED] or [("-", NOT_MEASURED)]
        figures, verdicts = (", ".join(texts) for texts in zip(*judged, strict=True))
        lines.append(f"| {target.name} | {target.bound} | {figures} | {verdicts} |")
    return lines


def read_results(folder: Path, prefixes: tuple[str, ...]) -> Results:
    """The runs in a folder, the whole ones before those whose name says which part they are."""
    paths = {path.stem: path for path in folder.glob("*.json")}
    return Results(
        {
            name: json.loads(paths[name].read_text())
            for name in sorted(paths)
            if name.startswith(prefixes)
        }
    )


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(results: Path) -> None:
    """Write the table of what must be reached."""
    page = make_page(
        read_results(results, ("streaming-", "stages")),
        read_results(results, PREFIXES),
    )
    (results / "targets.md").write_text(page)
    click.echo(page)


if __name__ == "__main__":
    main()
