"""All benchmarks one after another, each in a process of its own, and what must be reached.

    python -m benchmarks.suite --output results

What tells most comes first. Each part ends at its limit and leaves what it has; what it says goes
to a log beside its results. One that fails does not keep the next from its turn. Parts that want
more GPUs than there are are left out.
"""

import shlex
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
import torch

from benchmarks import harness

GRACE_S = 45.0
"""What a part may take past its limit before it is ended from outside."""


@dataclass(frozen=True)
class Part:
    """One run of a benchmark.

    Attributes:
        module: of this package.
        arguments: for it, as they are typed.
        limit_s: what it may take.
        num_gpus: how many it wants.
        without: options of the suite that the benchmark does not have.
    """

    module: str
    arguments: str
    limit_s: float
    num_gpus: int = 1
    without: tuple[str, ...] = ()

    def command(self, **given: object) -> list[str]:
        """What starts it, given the suite's options."""
        command = [sys.executable, "-m", f"benchmarks.{self.module}", *shlex.split(self.arguments)]
        for option, value in given.items():
            if option not in self.without:
                command += [f"--{option.replace('_', '-')}", str(value)]
        return command


def streaming(model: str, frames: int, modes: str, limit_s: float, name: str = "") -> Part:
    """Steps of one model at one length."""
    name = name or f"streaming-{model}-{frames}"
    arguments = f"--model {model} --frames {frames} --modes {modes} --name {name}"
    return Part("streaming", arguments, limit_s)


OURS = "resident,streamed-mapped,streamed-pinned,streamed-half-resident,streamed-tenth-resident"
SLOTS = "streamed-three-slots,streamed-three-slots-tenth-resident"
GRAPHED = "graphed-resident,graphed-streamed"
COMPILED = "compiled-resident,compiled-streamed"
PEERS = "resident,group-block-record,group-leaf-record,group-block,group-leaf,model-offload"
SHARED = (
    "streamed-one,streamed-gather,fsdp-cpu-offload,resident,streamed-auto,streamed-local,fsdp,"
    "resident+context,streamed-gather+context,fsdp-cpu-offload+context"
)
PARTS: dict[str, Part] = {
    "multi-gpu": Part("multi_gpu", f"--model wan-14b --frames 1,17 --modes {SHARED}", 540, 2),
    "multi-gpu-81": Part(
        "multi_gpu",
        "--model wan-14b --frames 81 --modes resident+context,streamed-gather+context "
        "--name multi-gpu-wan-14b-81",
        300,
        2,
    ),
    "prompts": Part("prompts", "--model wan-1.3b", 400, 2, without=("limit_s",)),
    "killed-rank": Part("killed_rank", "--model wan-14b", 240, 2, without=("limit_s",)),
    "14b-17": streaming("wan-14b", 17, f"{OURS},{SLOTS},{GRAPHED}", 300),
    "14b-1": streaming("wan-14b", 1, f"{OURS},{GRAPHED}", 240),
    "14b-81": streaming("wan-14b", 81, "resident,streamed-mapped", 300),
    "launches": Part(
        "streaming",
        f"--model wan-narrow --frames 1 --size 64x64 --rounds 30 --modes {OURS},{GRAPHED} "
        "--name streaming-wan-narrow",
        60,
    ),
    "1.3b-1": streaming("wan-1.3b", 1, f"{OURS},{GRAPHED}", 120),
    "1.3b-17": streaming("wan-1.3b", 17, f"{OURS},{GRAPHED},{COMPILED}", 180),
    "stages": Part("stages", "", 720),
    "plan": Part("plan", "", 400, without=("folder",)),
    "quantized": Part("quantized", "--model wan-1.3b", 240),
    "caches": Part("caches", "--model wan-1.3b", 120),
    "peers-1.3b": streaming(
        "wan-1.3b", 17, f"{PEERS},sequential-offload", 240, "streaming-wan-1.3b-peers"
    ),
    "peers-14b": streaming("wan-14b", 17, PEERS, 400, "streaming-wan-14b-peers"),
}


def run(command: list[str], limit_s: float, log: Path) -> str:
    """Run a part and say how it ended; none of its processes is left."""
    with log.open("w") as said:
        said.write(shlex.join(command) + "\n")
        said.flush()
        process = psutil.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit_s + GRACE_S)
        except psutil.TimeoutExpired:
            return "ended at its limit"
        finally:
            end(process)
    return "done" if code == 0 else f"failed with code {code}: {log}"


def end(process: psutil.Process) -> None:
    """End a process and those it started."""
    with suppress(psutil.NoSuchProcess):
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(GRACE_S)


@click.command()
@click.option(
    "--parts",
    type=harness.Names(tuple(PARTS)),
    default=tuple(PARTS),
    help=f"Of {', '.join(PARTS)}.  [default: all]",
)
@click.option("--arguments", default="", help="For every part, behind its own.")
@harness.limit(3600.0)
@harness.folder
@harness.output
def main(
    parts: tuple[str, ...], arguments: str, limit_s: float, folder: Path, output: Path
) -> None:
    """Run the parts and write what they leave, their logs, and `targets.md`."""
    until = time.monotonic() + limit_s
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    there = torch.cuda.device_count() or 1
    for name in parts:
        part = PARTS[name]
        left = until - time.monotonic() - GRACE_S
        if part.num_gpus > there:
            click.echo(f"{name}: left out, for it wants {part.num_gpus} GPUs")
        elif left <= 0:
            click.echo(f"{name}: no time is left for it")
        else:
            began = time.monotonic()
            limit_s = min(part.limit_s, left)
            command = part.command(limit_s=limit_s, folder=folder, output=output)
            ended = run([*command, *shlex.split(arguments)], limit_s, logs / f"{name}.log")
            click.echo(f"{name}: {ended}, {time.monotonic() - began:.0f} s")
    command = [sys.executable, "-m", "benchmarks.targets", "--results", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
