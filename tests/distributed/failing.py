"""One process of a world in which one fails; `test_failing_ranks.py` starts it."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import torch

from fastvideo_lightning import HostResidentStrategy
from fastvideo_lightning.strategies import host_resident, launcher, watchdog


def main(num_processes: int, folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    if settings["others"] == "start" and os.environ.get("LOCAL_RANK", "0") != "0":
        (folder / "starting").write_text(str(os.getpid()))
        time.sleep(60)  # the first process waits for this one in the start of the process group
    if settings["rank"] == 0 and settings["others"] != "end":
        watchdog._IN_RUN_S = 2.0  # else the others end soon, and a busy machine may take its time
    early = settings["how"] == "early-exit-0" and os.environ.get("LOCAL_RANK", "0") != "0"
    if early:
        host_resident.report_failures = lambda rank: leave_before_the_group(folder)
    accelerator = settings.get("accelerator", "cpu")
    if accelerator == "cpu":
        close = launcher._destroy_dist_connection
        launcher._destroy_dist_connection = partial(close_together, close, num_processes, folder)
    fabric = L.Fabric(
        accelerator=accelerator, devices=num_processes, strategy=HostResidentStrategy()
    )
    if not os.environ.get("LT_CLI_USED"):  # `fabric run` has launched already
        fabric.launch()
    rank = fabric.global_rank
    note = {"pid": os.getpid(), "port": int(os.environ["MASTER_PORT"])}
    (folder / f"{rank}.json").write_text(json.dumps(note))
    fabric.barrier()
    if rank == settings["rank"]:
        time.sleep(1)  # the others are at work by then
        (folder / "failed_at").write_text(str(time.time()))
        if settings["how"] == "return":
            return
        fail(settings["how"])
    if settings["others"] == "wait":
        fabric.barrier()
    if settings["others"] == "end":
        time.sleep(2)
        return
    try:
        while True:
            time.sleep(0.01)
    finally:
        (folder / f"tidy-{rank}").touch()


def leave_before_the_group(folder: Path) -> None:
    """End where the others are to wait for this one in the start of the process group."""
    (folder / "failed_at").write_text(str(time.time()))
    sys.exit(0)


def close_together(close: Callable[[], None], num_processes: int, folder: Path) -> None:
    """Close the group as NCCL does, which gloo does not: all at once, or not at all."""
    (folder / f"closes-{os.getpid()}").touch()
    while len(list(folder.glob("closes-*"))) < num_processes:
        time.sleep(0.05)
    close()


def fail(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if how.startswith("os-exit"):
        os._exit(0 if how == "os-exit-0" else 3)
    if how == "exit":
        sys.exit(3)
    if how == "system-exit":
        raise SystemExit
    if how == "system-exit-3":
        raise SystemExit(3)
    if how == "interrupt":
        os.killpg(os.getpgid(0), signal.SIGINT)  # as a terminal does
        time.sleep(5)
    raise ValueError("the third block is broken\nand more")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
