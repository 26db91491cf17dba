"""The plan's prediction against what happens: reserved memory and time, over budgets and lengths.

    python -m benchmarks.plan

The weights are random tiles in one file in memory (or on the disk, where an earlier benchmark has
left one), from which every placement streams and reads. Each row begins with the weights and the
matrix library's workspace alone, as a stage does under a budget. Rows are written as they are
measured, the most telling ones first, so a run that is cut off leaves what it has.

The table of what was predicted and what happened.

Denoising steps under the placements that a plan chooses, beside what it predicts for them.

Decoding, whole and in tiles, beside what the plan predicts for it.
"""

import json
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from torch import nn

from benchmarks import harness
from benchmarks.harness import (
    Deadline,
    DeviceMemory,
    describe_machine,
    empty_caches,
    find_device,
    read_peak,
    reset_peak,
    time_steps,
)
from benchmarks.models import CONFIGS, RandomWan, make_inputs, make_transformer, transformer_shapes
from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.memory_budget import take_workspace
from fastvideo_lightning.callbacks.placement import Placement
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan import BudgetTooSmallError, find_card
from fastvideo_lightning.plan.choose import choose
from fastvideo_lightning.plan.cost import Request
from fastvideo_lightning.plan.machine import GIB, Machine, match_card
from fastvideo_lightning.plan.predict import Prediction, StagePlan, predict
from fastvideo_lightning.plan.probe import measure_launch, probe
from fastvideo_lightning.plan.sizes import measure_components
from fastvideo_lightning.plan.vae_cost import Autoencoder
from fastvideo_lightning.plan.workload import Workload

_GIB = 1 << 30
MOST_MEMORY, MOST_TIME = 1.1, 0.15


def make_table(facts: dict) -> str:
    """The rows as Markdown."""
    lines = [
        "# Predicted against measured",
        "",
        f"{facts['device']}, torch {facts['torch']}, diffusers {facts['diffusers']}, "
        f"Python {facts['python']}, commit {facts['commit']}. One denoising step, "
        f"{facts['size']}, bf16, batch 1, and decoding. Reserved memory may be 10 % above and "
        "never below; the time of a step within 15 %. Times are predicted from rates measured "
        "here (`probe`), and from the table of cards. Budgets are those for which the plan chose "
        "the placement.",
        "",
        _verdict(facts["rows"]),
        "",
        "| model | frames | budgets GiB | placement | reserved GiB, predicted | measured | ratio "
        "| time ms, predicted | from the table | measured | ratio | from the table |",
        "|---" * 12 + "|",
    ]
    for row in facts["rows"]:
        cells = (
            row["model"],
            row["frames"],
            ", ".join(f"{budget:g}" for budget in row["budgets_gib"]) or "-",
            row["where"],
            f"{row['predicted_bytes'] / _GIB:.2f}",
            f"{row['measured_bytes'] / _GIB:.2f}",
            _ratio(row["predicted_bytes"], row["measured_bytes"]),
            _ms(row["predicted_s"]),
            _ms(row["predicted_from_table_s"]),
            _ms(row["measured_s"]),
            _ratio(row["predicted_s"], row["measured_s"]),
            _ratio(row["predicted_from_table_s"], row["measured_s"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _verdict(rows: list[dict]) -> str:
    """How many rows keep what is promised; memory has none on a CPU."""
    memory = [r["predicted_bytes"] / r["measured_bytes"] for r in rows if r["measured_bytes"]]
    times = [row["predicted_s"] / row["measured_s"] for row in rows]
    kept = sum(1 <= ratio <= MOST_MEMORY for ratio in memory)
    near = sum(abs(ratio - 1) <= MOST_TIME for ratio in times)
    return (
        f"Of {len(rows)} rows, memory holds in {kept}{_range(memory)} and time in "
        f"{near}{_range(times)}."
    )


def _range(ratios: list[float]) -> str:
    return f" ({min(ratios):.3f} to {max(ratios):.3f} of what was measured)" if ratios else ""


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"


def _ratio(predicted: float | None, measured: float) -> str:
    return f"{predicted / measured:.3f}" if predicted and measured else "-"


LONG_STEP_S = 1.0
SETUP_S, READ_BYTES_PER_S = 2.0, 4e9  # of a placement, as seen on one H100


@dataclass
class Place:
    """One placement of a denoiser, and the videos that it is measured with.

    Attributes:
        config: its flags.
        budgets: for each number of frames the budgets that choose it, in GiB; none where
            everything streams whatever would fit.
    """

    config: OffloadConfig
    budgets: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the table has it."""
        if not self.config.dit_layerwise_offload:
            return "resident"
        slots = (
            ""
            if self.config.num_slots == OffloadConfig.num_slots
            else f", {self.config.num_slots} slots"
        )
        return f"streamed, {self.config.dit_resident_blocks} resident{slots}"

    def make_callback(self) -> Placement:
        """What puts the weights there."""
        if not self.config.dit_layerwise_offload:
            return Resident("")
        return LayerwiseOffload(
            "blocks",
            num_slots=self.config.num_slots,
            resident_blocks=self.config.dit_resident_blocks,
        )


class Steps:
    """The steps of one model.

    Args:
        name: a key of ``CONFIGS``.
        folder: where its weights are, or will be.
        size: height and width.
        machine: what predictions are made for.
        table: the same from the table of cards; None for a card that is not in it.
        device: where it computes.
        deadline: when to stop.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        size: tuple[int, int],
        machine: Machine,
        table: Machine | None,
        device: torch.device,
        deadline: Deadline,
    ) -> None:
        self._name, self._folder, self._size, self._device = name, folder, size, device
        self._machine, self._table, self._deadline = machine, table, deadline
        self._subjects: dict[int, Workload] = {}

    @cached_property
    def _module(self) -> VideoModule:
        return make_module(self._name)

    def subject(self, frames: int) -> Workload:
        """One call of the denoiser alone."""
        if frames not in self._subjects:
            height, width = self._size
            params = SamplingParams(height=height, width=width, num_frames=frames)
            params = params.merge(num_inference_steps=1, guidance_scale=1.0)
            whole = Workload.of(self._module, params)
            denoiser = tuple(s for s in whole.components if s.role is Role.DENOISER)
            self._subjects[frames] = replace(whole, components=denoiser)
        return self._subjects[frames]

    def list_places(self, lengths: Iterable[int], budgets_gib: Iterable[float]) -> list[Place]:
        """The placements that budgets lead to; those that most rows share come first.

        Of those for one length alone, the longest comes first.
        """
        places: dict[OffloadConfig, Place] = {}
        for frames in lengths:
            streamed = OffloadConfig()
            places.setdefault(streamed, Place(streamed)).budgets[frames] = []
            for budget_gib in budgets_gib:
                try:
                    config = self._choose(frames, budget_gib).config
                except BudgetTooSmallError:
                    continue
                place = places.setdefault(config, Place(config))
                place.budgets.setdefault(frames, []).append(budget_gib)
        return sorted(places.values(), key=lambda place: (-len(place.budgets), -max(place.budgets)))

    def _choose(self, frames: int, budget_gib: float) -> Prediction:
        found = choose(self.subject(frames), OffloadConfig(), self._machine, budget_gib * GIB)
        flags = ("dit_layerwise_offload", "dit_resident_blocks", "num_slots")
        config = OffloadConfig(**{flag: getattr(found.config, flag) for flag in flags})
        return replace(found, config=config)

    def measure(self, places: Iterable[Place]) -> Iterator[dict[str, object]]:
        """A row for each placement and number of frames, as long as there is time."""
        for place in places:
            first = predict(self.subject(next(iter(place.budgets))), place.config, self._machine)
            if not self._deadline.allows(SETUP_S + first.device_bytes / READ_BYTES_PER_S):
                continue
            model = make_transformer(self._name, self._folder)
            callback = place.make_callback()
            empty_caches(self._device)
            callback.attach(model, self._device)
            callback.on_predict_batch_start()
            for frames, budgets_gib in place.budgets.items():
                stage = self._predict(frames, place.config)
                assert stage.time_s is not None
                if not self._deadline.allows(4 * stage.time_s):
                    continue
                yield {
                    "model": self._name,
                    "frames": frames,
                    "budgets_gib": budgets_gib,
                    "where": place.name,
                    "predicted_bytes": stage.reserved_bytes,
                    "predicted_s": stage.time_s,
                    "bound": stage.bound,
                    "predicted_from_table_s": self._from_table(frames, place.config),
                    **self._measure(model, frames),
                }
            callback.on_predict_batch_end()
            callback.detach()
            del model, callback
            empty_caches(self._device)

    def _predict(self, frames: int, config: OffloadConfig) -> StagePlan:
        """Where launches are the bound, with their rate of this moment: hosts of clouds vary."""
        subject, machine = self.subject(frames), self._machine
        stage = predict(subject, config, machine).stages[1]
        if stage.bound != "launches" or self._device.type != "cuda":
            return stage
        now = replace(machine, launch_s=measure_launch(self._device))
        return predict(subject, config, now).stages[1]

    def _from_table(self, frames: int, config: OffloadConfig) -> float | None:
        if self._table is None:
            return None
        return predict(self.subject(frames), config, self._table).stages[1].time_s

    def _measure(self, model: RandomWan, frames: int) -> dict[str, float]:
        """Reserved memory from an empty cache on, as a stage begins, and the time of a step."""
        inputs = make_inputs(model, frames, self._size, device=self._device)

        def step() -> None:
            with torch.no_grad():
                model(**inputs, return_dict=False)

        before = begin_stage(self._device)
        reset_peak(self._device)
        seconds = [time_steps(step, self._device, 1)]
        if seconds[0] < LONG_STEP_S:
            seconds = [time_steps(step, self._device, 2) for _ in range(5)]
        peak = read_peak(self._device)
        return {
            "measured_bytes": peak.reserved,
            "allocated_bytes": peak.allocated,
            "before_bytes": before.reserved,
            "measured_s": statistics.median(seconds),
        }


def begin_stage(device: torch.device) -> DeviceMemory:
    """Leave nothing of earlier rows, and take the workspace as `MemoryBudget` does."""
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
    empty_caches(device)
    if device.type == "cuda":
        take_workspace(device)
    return empty_caches(device)


def make_module(name: str) -> VideoModule:
    """A pipeline whose denoiser has its dtypes and weighs nothing here."""
    transformer = make_meta_transformer(name)
    for fqn, shape, dtype in transformer_shapes(transformer):
        weight = transformer.get_parameter(fqn)
        weight.data = torch.empty(shape, dtype=dtype, device="meta")
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": UniPCMultistepScheduler()}
    return VideoModule.from_pipeline(WanPipeline(transformer=transformer, vae=vae, **parts))


def make_meta_transformer(name: str) -> RandomWan:
    """The shapes of a transformer."""
    with torch.device("meta"):
        return RandomWan(**CONFIGS[name]).eval().requires_grad_(False)


def count_bytes(name: str) -> int:
    """Bytes of a transformer's weights."""
    shapes = transformer_shapes(make_meta_transformer(name))
    return sum(shape.size_bytes for shape in shapes)


@dataclass(frozen=True)
class Decoding:
    """One way to decode."""

    frames: int
    tiled: bool
    dtype: torch.dtype


DECODINGS = (
    Decoding(81, False, torch.float32),
    Decoding(17, True, torch.float32),
    Decoding(17, False, torch.float32),
    Decoding(81, True, torch.float32),
    Decoding(81, False, torch.bfloat16),
    Decoding(1, False, torch.float32),
)


def measure_decoding(
    size: tuple[int, int],
    machine: Machine,
    table: Machine | None,
    device: torch.device,
    deadline: Deadline,
) -> Iterator[dict[str, object]]:
    """A row for each kind, as long as there is time.

    Args:
        size: height and width.
        machine: what predictions are made for.
        table: the same from the table of cards; None for a card that is not in it.
        device: where it computes.
        deadline: when to stop.
    """
    vae = AutoencoderKLWan().eval().requires_grad_(False)
    for kind in DECODINGS:
        nn.Module.to(vae, device, kind.dtype)  # diffusers' own warns of every cast
        config = OffloadConfig(vae_tiling=kind.tiled, vae_cpu_offload=False)
        subject = make_vae_subject(vae, kind.frames, size)
        stage = predict(subject, config, machine).stages[2]
        assert stage.time_s is not None
        if not deadline.allows(3 * stage.time_s):
            continue
        switch = vae.enable_tiling if kind.tiled else vae.disable_tiling
        switch()
        expected = predict(subject, config, table).stages[2].time_s if table else None
        yield {
            "model": f"VAE in {str(kind.dtype).removeprefix('torch.')}",
            "frames": kind.frames,
            "budgets_gib": [],
            "where": "in tiles" if kind.tiled else "whole",
            "predicted_bytes": stage.reserved_bytes,
            "predicted_s": stage.time_s,
            "bound": stage.bound,
            "predicted_from_table_s": expected,
            **_measure(vae, kind, size, device),
        }
    del vae
    empty_caches(device)


def _measure(
    vae: AutoencoderKLWan, kind: Decoding, size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Reserved memory and time of decoding once, behind once that is not timed."""
    shape = (1, 16, (kind.frames - 1) // 4 + 1, size[0] // 8, size[1] // 8)
    latents = torch.randn(shape, device=device, dtype=kind.dtype)
    before = begin_stage(device)
    reset_peak(device)

    def decode() -> None:
        with torch.no_grad():
            vae.decode(latents, return_dict=False)

    taken_s = time_steps(decode, device, 1)
    peak = read_peak(device)
    return {
        "measured_bytes": peak.reserved,
        "allocated_bytes": peak.allocated,
        "before_bytes": before.reserved,
        "measured_s": taken_s,
    }


def make_vae_subject(vae: AutoencoderKLWan, frames: int, size: tuple[int, int]) -> Workload:
    """A decode stage and nothing else."""
    pipeline = WanPipeline(None, None, vae, UniPCMultistepScheduler(), None)
    module = VideoModule.from_pipeline(pipeline)
    (component,) = measure_components(module)
    request = Request(*size, frames, 1, 1, 1, False)
    work = Autoencoder.of(module, component)
    whole, tiled = ({component.fqn: work.decode(request, tiled=tiled)} for tiled in (False, True))
    return Workload((component,), request, whole, tiled, encoding={})


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
@harness.frames("81,17,1")
@click.option("--budgets", default="3,6,8,16,24,40", show_default=True, help="GiB.")
@harness.size()
@click.option(
    "--decoding/--no-decoding", default=True, show_default=True, help="The VAE, after the models."
)
@harness.name("plan")
@harness.limit(400.0)
@harness.output
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
    harness.check_models(*names, *decoded, instead="--models wan-tiny --no-decoding")
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
