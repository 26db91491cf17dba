"""What two GPUs must reach, read off `multi_gpu`, `prompts` and `killed_rank`."""

from collections.abc import Callable
from typing import Any

from benchmarks.target import Results, Target

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


def _host_share(run: Run) -> float:
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


TARGETS = (
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
    Target("14B, host bytes per node / weight bytes", "<= 1.01", 1.01, _in_one_run(_host_share)),
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
