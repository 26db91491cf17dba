"""The plan's prediction against what happens: reserved memory and time, over budgets and lengths.

    python -m benchmarks.plan

The weights are random tiles read straight into their places: no file, and no second copy on the
host. Each row is written when it is measured, the most telling ones first, so a run that is cut off
leaves what it has.
"""

import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from benchmarks.machine import (
    Deadline,
    describe_machine,
    empty_caches,
    find_device,
    read_peak,
    reset_peak,
    synchronize,
    time_steps,
)
from benchmarks.plan_report import make_table
from benchmarks.shapes import CONFIGS, RandomWan, make_inputs, transformer_shapes
from fastvideo_lightning import OffloadConfig, SamplingParams, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan import BudgetTooSmallError, find_card
from fastvideo_lightning.plan.cards import match_card
from fastvideo_lightning.plan.choose import choose
from fastvideo_lightning.plan.machine import GIB, Machine
from fastvideo_lightning.plan.measure import measure_components
from fastvideo_lightning.plan.predict import predict
from fastvideo_lightning.plan.probe import probe
from fastvideo_lightning.plan.subject import Subject
from fastvideo_lightning.plan.work import Request, decode_work

RESULTS = Path(__file__).parent / "results"
TILE = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02)


class TileSource:
    """A weight whose numbers are a tile, over and over."""

    path = None
    offset = 0

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        self.shape = shape
        self.stored_dtype = dtype

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype, on any device."""
        return self.stored_dtype

    def read_into(self, out: torch.Tensor) -> None:
        """Fill a host tensor."""
        flat, tile = out.view(-1), TILE.to(self.stored_dtype)
        for part in flat.split(tile.numel()):
            part.copy_(tile[: part.numel()])


def make_transformer(name: str) -> RandomWan:
    """A transformer on meta whose weights are tiles."""
    with torch.device("meta"):
        model = RandomWan(**CONFIGS[name]).eval().requires_grad_(False)
    model.rope = type(model.rope)(
        model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    )
    model.weight_sources = {
        fqn: TileSource(shape, dtype) for fqn, shape, dtype in transformer_shapes(model)
    }
    return model


def make_subject(name: str, frames: int, size: tuple[int, int]) -> Subject:
    """One denoising step of one call, of the denoiser alone."""
    transformer = make_transformer(name)
    for fqn, source in transformer.weight_sources.items():
        weight = transformer.get_parameter(fqn)
        weight.data = torch.empty(source.shape, dtype=source.stored_dtype, device="meta")
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": UniPCMultistepScheduler()}
    module = VideoModule.from_pipeline(WanPipeline(transformer=transformer, vae=vae, **parts))
    sampling = SamplingParams(height=size[0], width=size[1], num_frames=frames)
    params = sampling.merge(num_inference_steps=1, guidance_scale=1.0)
    subject = Subject.of(module, params)
    return replace(
        subject, components=tuple(s for s in subject.components if s.role is Role.DENOISER)
    )


def measure_step(
    name: str, frames: int, config: OffloadConfig, size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Reserved memory and time of a step under a set of flags."""
    model = make_transformer(name)
    empty_caches(device)
    callback = Resident("")
    if config.dit_layerwise_offload:
        callback = LayerwiseOffload("blocks", resident_blocks=config.dit_resident_blocks)
    callback.attach(model, device)
    callback.on_predict_batch_start()
    inputs = make_inputs(model, frames, size, device=device)

    def step() -> None:
        with torch.no_grad():
            model(**inputs, return_dict=False)

    empty_caches(device)
    reset_peak(device)
    seconds = [time_steps(step, device, 1)]
    if seconds[0] < 1:
        seconds = [time_steps(step, device, 2) for _ in range(3)]
    reserved = read_peak(device).reserved
    callback.on_predict_batch_end()
    callback.detach()
    return {"measured_bytes": reserved, "measured_s": statistics.median(seconds)}


def list_cases(
    models: list[str], frames: list[int], budgets: list[float]
) -> Iterator[tuple[str, int, float | None]]:
    """Models, lengths and budgets; the middle length of all models first, the longest last.

    A budget of None: everything streams, whatever would fit.
    """
    order = sorted(frames, key=lambda count: (count == max(frames), count == min(frames)))
    for count in order:
        for name in models:
            yield name, count, None
            for budget in budgets:
                yield name, count, budget


def choose_case(
    subject: Subject, budget_gib: float | None, machine: Machine
) -> OffloadConfig | None:
    """The flags of a case; None where nothing fits."""
    if budget_gib is None:
        return OffloadConfig()
    try:
        return choose(subject, OffloadConfig(), machine, budget_gib * GIB).config
    except BudgetTooSmallError:
        return None


def measure_decoding(device: torch.device, size: tuple[int, int]) -> Iterator[dict[str, object]]:
    """Decoding in fp32, whole and in tiles, against its prediction."""
    machine = match_card(describe_machine(device)["device"]) or find_card("H100")
    for frames, tiled in ((17, False), (17, True), (81, False)):
        vae = AutoencoderKLWan().eval().requires_grad_(False).to(device)
        sampling = SamplingParams(height=size[0], width=size[1], num_frames=frames)
        config = OffloadConfig(vae_tiling=tiled, vae_cpu_offload=False)
        stage = predict(make_vae_subject(vae, sampling), config, machine).stages[2]
        if tiled:
            vae.enable_tiling()
        yield {
            "model": f"VAE{', tiled' if tiled else ''}",
            "frames": frames,
            "budget_gib": None,
            "flags": {},
            "predicted_bytes": stage.reserved_bytes,
            "predicted_s": None,
            "predicted_from_table_s": stage.time_s,
            **measure_decode(vae, frames, size, device),
        }


def measure_decode(
    vae: AutoencoderKLWan, frames: int, size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Reserved memory and time of decoding once, behind once that is not timed."""
    shape = (1, 16, (frames - 1) // 4 + 1, size[0] // 8, size[1] // 8)
    latents = torch.randn(shape, device=device)
    empty_caches(device)
    reset_peak(device)
    with torch.no_grad():
        taken_s = time_steps(lambda: vae.decode(latents, return_dict=False), device, 1)
    reserved = read_peak(device).reserved
    vae.to("cpu")
    return {"measured_bytes": reserved, "measured_s": taken_s}


def make_vae_subject(vae: AutoencoderKLWan, params: SamplingParams) -> Subject:
    """A decode stage and nothing else."""
    pipeline = WanPipeline(None, None, vae, UniPCMultistepScheduler(), None)
    module = VideoModule.from_pipeline(pipeline)
    (size,) = measure_components(module)
    assert params.height
    assert params.width
    assert params.num_frames
    request = Request(params.height, params.width, params.num_frames, 1, 1, 1, False)
    works = [{size.fqn: decode_work(module, size, request, tiled=t)} for t in (False, True)]
    return Subject((size,), request, *works, encoding={})


def measure_denoising(
    cases: Iterator[tuple[str, int, float | None]],
    size: tuple[int, int],
    machine: Machine,
    device: torch.device,
    deadline: Deadline,
) -> Iterator[dict[str, object]]:
    """A row for each case; cases of the same flags are measured once."""
    table = match_card(machine.name)
    known: dict[tuple[str, int, OffloadConfig], dict[str, float]] = {}
    for name, frames, budget_gib in cases:
        subject = make_subject(name, frames, size)
        config = choose_case(subject, budget_gib, machine)
        if config is None or not deadline.allows(15):
            continue
        stage = predict(subject, config, machine).stages[1]
        key = (name, frames, config)
        if key not in known:
            known[key] = measure_step(name, frames, config, size, device)
        yield {
            "model": name,
            "frames": frames,
            "budget_gib": budget_gib,
            "flags": {
                flag: getattr(config, flag)
                for flag in ("dit_layerwise_offload", "dit_resident_blocks")
            },
            "predicted_bytes": stage.reserved_bytes,
            "predicted_s": stage.time_s,
            "predicted_from_table_s": predict(subject, config, table).stages[1].time_s
            if table
            else None,
            **known[key],
        }


@click.command()
@click.option("--models", default="wan-14b,wan-1.3b", show_default=True)
@click.option("--frames", default="1,17,81", show_default=True)
@click.option("--budgets", default="6,8,12,16,24,40", show_default=True, help="GiB.")
@click.option("--size", default="480x832", show_default=True)
@click.option("--seconds", default=200.0, show_default=True, help="To end after.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(models: str, frames: str, budgets: str, size: str, seconds: float, output: Path) -> None:
    """Measure and write `plan.json` and `plan.md`."""
    deadline, device = Deadline(seconds), find_device()
    height, width = (int(side) for side in size.split("x"))
    on_gpu = device.type == "cuda"
    machine = probe(device) if on_gpu else find_card("H100")
    facts = {**describe_machine(device), "size": size, "machine": vars(machine), "rows": []}
    output.mkdir(parents=True, exist_ok=True)
    cases = list_cases(
        models.split(","),
        [int(count) for count in frames.split(",")],
        [float(budget) for budget in budgets.split(",")],
    )
    rows = measure_denoising(cases, (height, width), machine, device, deadline)
    decoding = measure_decoding(device, (height, width)) if on_gpu else iter(())
    for row in chain(decoding, rows):
        _keep(facts, row, output)
    synchronize(device)
    click.echo(make_table(facts))


def _keep(facts: dict, row: dict[str, object], output: Path) -> None:
    """Add a row and write what there is."""
    facts["rows"].append(row)
    (output / "plan.json").write_text(json.dumps(facts, indent=1) + "\n")
    (output / "plan.md").write_text(make_table(facts))
    click.echo(f"{row['model']}, {row['frames']} frames, {row['budget_gib']} GiB", err=True)


if __name__ == "__main__":
    main()
