"""Step time and memory of a streamed denoiser, beside the resident one and the alternatives.

    python -m benchmarks.streaming --model wan-14b --frames 1,17,81 --modes all

All modes are measured by one process. Those that fit beside each other are timed in turns, so that
a drift of the machine meets all alike; each alternative takes turns with the resident model and is
then taken down. Reserved memory of a mode is what its own steps add to the process. Results are
written after every number of frames, so that a run that is cut off leaves them.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks import harness
from benchmarks.harness import (
    MODES,
    Contender,
    Deadline,
    LinkProbe,
    describe_machine,
    find_device,
    measure_link_rate,
)
from benchmarks.models import make_transformer, streamed_bytes, weight_bytes
from benchmarks.report import check_drawing, write_report


class Race:
    """The contenders of one model, those that are over included.

    Args:
        model_name: a key of ``CONFIGS``.
        counts: numbers of frames.
        folder: where the checkpoint is.
        path: the JSON file that results go to.
        rounds: how often each contender is timed.
        size: height and width of the video.
        mode_s: seconds after which a contender leaves the rounds of one number of frames.
        deadline: when to stop.
    """

    def __init__(
        self,
        model_name: str,
        counts: Sequence[int],
        folder: Path,
        path: Path,
        *,
        rounds: int,
        size: tuple[int, int],
        mode_s: float,
        deadline: Deadline,
    ) -> None:
        self.device = find_device()
        self.contenders: list[Contender] = []
        self._model_name, self._counts, self._folder, self._path = model_name, counts, folder, path
        self._size, self._rounds, self._mode_s, self._deadline = size, rounds, mode_s, deadline
        self._expected: dict[tuple[str, int], torch.Tensor] = {}
        self._model = model = make_transformer(model_name, folder)
        self._facts: dict[str, object] = {
            "model": model_name,
            "size": "x".join(map(str, size)),
            **describe_machine(self.device),
            "rounds": rounds,
            "weight_bytes": weight_bytes(model),
            "block_bytes": streamed_bytes(model),
            "link_bytes_per_s": measure_link_rate(self.device),
        }
        self._probe = LinkProbe(self.device)

    def _setup_s(self, modes: list[str]) -> float:
        """What modes take to be set up one after another, at the slowest rate that was seen."""
        size_bytes = weight_bytes(self._model)
        return sum(size_bytes / MODES[mode].setup_bytes_per_s for mode in modes)

    def run(self, modes: list[str]) -> None:
        """Measure ``modes``, party after party; the resident model is there all the time."""
        anchors = [self._enter("resident")] if "resident" in modes else []
        modes = [mode for mode in modes if mode != "resident"]
        parties = dict.fromkeys(MODES[mode].party for mode in modes) or {"": None}
        for number, party in enumerate(parties):
            names = [mode for mode in modes if MODES[mode].party == party]
            if number and not self._deadline.allows(self._setup_s(names)):
                click.echo(f"no time is left for {party}", err=True)
                continue
            guests = [self._enter(mode) for mode in names]
            for frames in self._counts:
                self._run_rounds([*anchors, *guests], frames)
                self._write()
                click.echo(f"{party or 'resident'}, {frames} frames: timed", err=True)
            if party != list(parties)[-1]:
                for guest in guests:
                    guest.close()

    def _enter(self, mode: str) -> Contender:
        contender = Contender(mode, self._model_name, self.device, self._folder, self._size)
        click.echo(f"{mode}: set up in {contender.setup_s:.1f} s", err=True)
        for frames in self._counts:
            contender.measure_memory(frames)
        for frames in self._counts:  # a graph captured here would be in what the next size reserves
            contender.check_output(frames, self._expected)
        self.contenders.append(contender)
        return contender

    def _run_rounds(self, present: list[Contender], frames: int) -> None:
        spent = dict.fromkeys(present, 0.0)
        before = {one: len(one.seconds.get(frames, ())) for one in present}
        rates = []
        for number in range(self._rounds):
            staying = [one for one in present if number < 2 or spent[one] < self._mode_s]
            last = sum(spent[one] for one in staying) / max(number, 1)
            if number and not self._deadline.allows(last):
                break
            rates.append(self._probe.measure())
            for contender in staying:
                spent[contender] += contender.time_once(frames)
        timed = {one.mode: one.seconds[frames][before[one] :] for one in present}
        for contender in present:
            contender.compare(frames, timed, statistics.median(rates))

    def _write(self) -> None:
        rows = [row for contender in self.contenders for row in contender.rows()]
        self._path.write_text(json.dumps(self._facts | {"rows": rows}, indent=1) + "\n")


def choose_modes(modes: str) -> list[str]:
    """The modes named, or all, without those that the machine cannot try, ordered as ``MODES``."""
    names = list(MODES) if modes == "all" else modes.split(",")
    if unknown := [name for name in names if name not in MODES]:
        raise click.BadParameter(f"no mode {unknown[0]!r}; there are {', '.join(MODES)}")
    chosen = [mode for mode in MODES if mode in names]
    if find_device().type == "cuda":
        return chosen
    if left_out := [mode for mode in chosen if MODES[mode].needs_gpu]:
        click.echo(f"left out, for they need a GPU: {', '.join(left_out)}", err=True)
    return [mode for mode in chosen if not MODES[mode].needs_gpu]


@click.command()
@harness.model()
@harness.frames()
@harness.size()
@click.option("--modes", default="streamed-mapped,resident", show_default=True, help="Or `all`.")
@harness.name()
@click.option("--rounds", default=5, show_default=True)
@click.option("--mode-s", default=12.0, show_default=True, help="Seconds of a mode's rounds.")
@harness.limit(3600.0)
@harness.folder
@harness.output
def main(
    model: str,
    frames: tuple[int, ...],
    size: tuple[int, int],
    modes: str,
    name: str | None,
    rounds: int,
    mode_s: float,
    limit_s: float,
    folder: Path,
    output: Path,
) -> None:
    """Measure and write JSON, a Markdown table and a plot."""
    deadline, chosen = Deadline(limit_s), choose_modes(modes)
    harness.check_models(model)
    check_drawing()
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{name or f'streaming-{model}'}.json"
    started = time.monotonic()
    race = Race(
        model,
        frames,
        folder,
        path,
        rounds=rounds,
        size=size,
        mode_s=mode_s,
        deadline=deadline,
    )
    click.echo(f"the checkpoint is there after {time.monotonic() - started:.0f} s", err=True)
    race.run(chosen)
    click.echo(write_report(path))


if __name__ == "__main__":
    main()
