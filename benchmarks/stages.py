"""The stages around the denoiser's steps, and whole videos, on checkpoints of random weights.

    python -m benchmarks.stages --model wan-14b --small-model wan-1.3b --parts all

``encode``: the text encoder streamed and resident. ``moments``: the step in which a two-expert
model hands over, and how long the decode waits for the VAE. ``caps``: whole videos of a checkpoint
on disk under a cap of device memory, equal to those without one. ``flat``: many videos in a row.

The encode stage: a text encoder streamed through the device, beside a resident one.

Where the time of a video goes, seen by a callback: steps, hand-over, the wait for the VAE.

Whole videos: under a cap of device memory, and many in a row.

The page of what `benchmarks.stages` has measured.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks import harness
from benchmarks.checkpoints import BOUNDARY_RATIO, PROMPT, write_pipeline
from benchmarks.harness import (
    GIB,
    Deadline,
    describe_machine,
    empty_caches,
    find_device,
    host_rss_bytes,
    measure_link_rate,
    read_peak,
    reset_peak,
    synchronize,
    time_steps,
)
from benchmarks.models import CONFIGS
from fastvideo_lightning import GeneratedVideo, VideoGenerator, VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement

NUM_TOKENS = 512  # what Wan pads every prompt to


def measure_encoding(folder: Path, device: torch.device, *, rounds: int = 5) -> dict[str, Any]:
    """Time the text encoder of a checkpoint on one prompt, streamed and resident.

    Args:
        folder: the checkpoint.
        device: where it computes.
        rounds: how often each is timed.
    """
    on_cpu = device.type == "cpu"  # runs in fp32 there, which the file does not hold
    callbacks: dict[str, Placement] = {
        "streamed": LayerwiseOffload("text_encoder", host_memory="auto" if on_cpu else "mapped"),
        "resident": Resident("text_encoder"),
    }
    results: dict[str, Any] = {"tokens": NUM_TOKENS}
    outputs = {}
    for name, callback in callbacks.items():
        results[name], outputs[name] = _measure(callback, folder, device, rounds)
    results["equal"] = torch.equal(outputs["streamed"], outputs["resident"])
    return results


def _measure(
    callback: Placement, folder: Path, device: torch.device, rounds: int
) -> tuple[dict[str, Any], torch.Tensor]:
    module = VideoModule.from_pretrained(folder, device_type=device.type)
    before = empty_caches(device)
    started = time.perf_counter()
    engine = callback.attach(module, device).engine
    callback.on_predict_batch_start()
    synchronize(device)
    setup_s = time.perf_counter() - started
    vocabulary = module.text_encoder.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, NUM_TOKENS), generator=generator).to(device)
    mask = torch.ones_like(ids)

    encode = partial(_encode, module.text_encoder, ids, mask)
    encode()
    reset_peak(device)
    output = encode().cpu()
    peak = read_peak(device)
    alone = []
    for _ in range(rounds):
        started = time.perf_counter()
        encode()
        synchronize(device)
        alone.append((time.perf_counter() - started) * 1e3)
    in_a_row = [time_steps(encode, device) * 1e3 for _ in range(rounds)]
    results = {
        "ms": statistics.median(in_a_row),
        "alone_ms": statistics.median(alone),
        "setup_s": setup_s,
        "reserved_gb": (peak.reserved - before.reserved) / 1e9,
        "streamed_bytes": sum(unit.size_bytes for unit in engine.units) if engine else 0,
    }
    callback.on_predict_batch_end()
    callback.detach()
    del module, encode
    empty_caches(device)
    return results, output


@torch.no_grad()
def _encode(encoder: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    states: torch.Tensor = encoder(ids, mask).last_hidden_state
    return states


class MomentClock:
    """A Fabric callback that marks moments on the compute stream, without waiting for it."""

    def __init__(self) -> None:
        self._marks: dict[str, Any] = {}
        self._handle: Any = None

    def on_predict_batch_start(self, module: VideoModule) -> None:
        """Forget the last video, and watch for the first layer that the decode computes."""
        self._marks.clear()
        first_layer = module.vae.post_quant_conv

        def mark_decode(*_: object) -> None:
            if "decode" not in self._marks:
                self._marks["decode"] = _now()

        self._handle = first_layer.register_forward_pre_hook(mark_decode)

    def on_denoise_step_start(self, step: int) -> None:
        """The first step begins here; the others where the one before ends."""
        if step == 0:
            self._marks["start"] = _now()

    def on_denoise_step_end(self, step: int) -> None:
        """A step's last kernel was launched."""
        self._marks[f"end {step}"] = _now()

    def on_predict_batch_end(self) -> None:
        """Look no longer."""
        self._handle.remove()

    def step_ms(self) -> list[float]:
        """Milliseconds of each step."""
        names = ["start", *(name for name in self._marks if name.startswith("end"))]
        return [self._between(*pair) for pair in zip(names[:-1], names[1:], strict=True)]

    def decode_wait_ms(self) -> float:
        """Milliseconds from the end of the last step to the first layer of the decode."""
        last = [name for name in self._marks if name.startswith("end")][-1]
        return self._between(last, "decode")

    def _between(self, first: str, second: str) -> float:
        begin, end = self._marks[first], self._marks[second]
        if isinstance(begin, float):
            return (end - begin) * 1e3
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))


def _now() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def measure_moments(
    folder: Path, *, num_videos: int = 4, num_steps: int = 12, **sampling: Any
) -> dict[str, Any]:
    """Make videos with a two-expert checkpoint and read the clock; the first one does not count.

    Args:
        folder: the checkpoint.
        num_videos: how many.
        num_steps: denoising steps of each.
        **sampling: size and length.
    """
    clock, hand_overs, waits, steps = MomentClock(), [], [], []
    flags = {"text_encoder_layerwise_offload": True, "text_encoder_cpu_offload": False}
    with VideoGenerator.from_pretrained(folder, callbacks=[clock], **flags) as generator:
        for seed in range(num_videos):
            generator.generate_video(
                PROMPT,
                save_video=False,
                seed=seed,
                num_inference_steps=num_steps,
                guidance_scale=1.0,
                **sampling,
            )
            pipeline = generator.module.pipeline
            boundary = (
                pipeline.config.boundary_ratio * pipeline.scheduler.config.num_train_timesteps
            )
            second = int((pipeline.scheduler.timesteps >= boundary).sum())
            steps.append(clock.step_ms())
            hand_overs.append(steps[-1][second] - statistics.median(steps[-1]))
            waits.append(clock.decode_wait_ms())
    return {
        "sampling": sampling,
        "step_ms": steps,
        "first_step_of_second_expert": second,
        "hand_over_excess_ms": statistics.median(hand_overs[1:]),
        "hand_over_excess_max_ms": max(hand_overs[1:]),
        "decode_wait_ms": statistics.median(waits[1:]),
        "decode_wait_max_ms": max(waits[1:]),
    }


FLAGS = {"text_encoder_layerwise_offload": True, "text_encoder_cpu_offload": False}


@contextmanager
def capped(cap_gib: float | None) -> Iterator[None]:
    """Let this process have so much device memory in all; without effect on a CPU."""
    device = find_device()
    if cap_gib is None or device.type != "cuda":
        yield
        return
    empty_caches(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(cap_gib * GIB / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def measure_caps(
    folder: Path, caps_gib: dict[int, float], *, num_steps: int = 2, **sampling: Any
) -> Iterator[dict[str, Any]]:
    """Make a video under each cap and again without one; the frames must be equal.

    Args:
        folder: the checkpoint.
        caps_gib: cap by number of frames.
        num_steps: denoising steps.
        **sampling: the size.

    Yields:
        A row for each cap, as soon as it is measured.
    """
    started = time.perf_counter()
    with capped(min(caps_gib.values())):
        generator = VideoGenerator.from_pretrained(folder, vae_tiling=True, **FLAGS)
    setup_s = time.perf_counter() - started
    with generator:

        def make(num_frames: int, cap_gib: float | None) -> tuple[GeneratedVideo, float]:
            with capped(cap_gib):
                video = generator.generate_video(
                    PROMPT,
                    save_video=False,
                    num_frames=num_frames,
                    num_inference_steps=num_steps,
                    guidance_scale=3.0,
                    **sampling,
                )
            return video, video.peak_gpu_memory_gib or 0.0

        for num_frames, cap_gib in caps_gib.items():
            row: dict[str, Any] = {"frames": num_frames, "cap_gib": cap_gib, "setup_s": setup_s}
            try:
                video, row["reserved_gib"] = make(num_frames, cap_gib)
            except RuntimeError as error:
                yield row | {"completes": False, "error": str(error)[:300]}
                continue
            row |= {"completes": True, "seconds": video.generation_time_s}
            row["frames_std"] = float(video.frames.std())
            free, row["uncapped_reserved_gib"] = make(num_frames, None)
            row["equal"] = bool(np.array_equal(video.frames, free.frames))
            yield row


def measure_flatness(folder: Path, *, num_videos: int = 50, **sampling: Any) -> dict[str, Any]:
    """Make and write many videos with one generator; note what the process holds after each.

    Args:
        folder: the checkpoint.
        num_videos: how many.
        **sampling: size, length and steps.
    """
    reserved, resident = [], []
    with (
        tempfile.TemporaryDirectory() as output,
        VideoGenerator.from_pretrained(folder, vae_tiling=True, **FLAGS) as generator,
    ):
        for seed in range(num_videos):
            generator.generate_video(
                PROMPT, output_path=output, seed=seed, guidance_scale=1.0, **sampling
            )
            on_gpu = torch.cuda.is_available()
            reserved.append(torch.cuda.memory_reserved() if on_gpu else 0)
            resident.append(host_rss_bytes())
    return {
        "videos": num_videos,
        "sampling": sampling,
        "reserved_bytes": reserved,
        "host_rss_bytes": resident,
        "reserved_growth": _growth(reserved),
        "host_rss_growth": _growth(resident),
    }


def _growth(sizes: list[int]) -> float:
    """By what share the last is larger than the third."""
    return sizes[-1] / sizes[2] - 1 if sizes[2] else 0.0


def make_page(facts: dict[str, Any]) -> str:
    """The parts that are there, each as a few lines or a table."""
    lines = [
        f"# Stages and whole videos, {facts['model']}",
        "",
        f"{facts['device']}, torch {facts['torch']}, diffusers {facts['diffusers']}, "
        f"transformers {facts['transformers']}, Python {facts['python']}, commit "
        f"{facts['commit']}. Random weights in files on disk.",
    ]
    for name, describe in _PARTS.items():
        if name in facts:
            lines += ["", *describe(facts)]
    return "\n".join(lines) + "\n"


def encode_ratio(part: dict[str, Any]) -> float:
    """The streamed encoder's time over that of its bytes on the link."""
    streamed = part["streamed"]
    link_ms = streamed["streamed_bytes"] / part["link_bytes_per_s"] * 1e3
    return float(streamed["ms"] / link_ms)


def _describe_encode(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"## Encode: the text encoder, {facts['encode']['tokens']} tokens",
        "",
        "| mode | in a row ms | alone ms | streamed GB | reserved GB | set-up s |",
        "|---" * 6 + "|",
    ]
    for mode in ("streamed", "resident"):
        row = facts["encode"][mode]
        lines.append(
            f"| {mode} | {row['ms']:.1f} | {row['alone_ms']:.1f} "
            f"| {row['streamed_bytes'] / 1e9:.2f} | {row['reserved_gb']:.2f} "
            f"| {row['setup_s']:.1f} |"
        )
    equal = "equal bit for bit" if facts["encode"]["equal"] else "NOT equal"
    rate = facts["encode"]["link_bytes_per_s"] / 1e9
    ratio = encode_ratio(facts["encode"])
    return [
        *lines,
        "",
        f"Streamed against its bytes on the link, at {rate:.1f} GB/s: {ratio:.3f}. "
        f"Outputs {equal}.",
    ]


def _describe_moments(facts: dict[str, Any]) -> list[str]:
    part = facts["moments"]
    typical = statistics.median(part["step_ms"][-1])
    return [
        "## Hand-over between two experts, and the wait for the VAE",
        "",
        f"{part['sampling']}; a step's median is {typical:.1f} ms. Medians of "
        f"{len(part['step_ms']) - 1} videos, the most in brackets.",
        "",
        f"- The step of the hand-over takes {part['hand_over_excess_ms']:+.1f} ms against the "
        f"median step ({part['hand_over_excess_max_ms']:+.1f}).",
        f"- From the last step's end to the decode's first layer: {part['decode_wait_ms']:.1f} ms "
        f"({part['decode_wait_max_ms']:.1f}).",
    ]


def _describe_caps(facts: dict[str, Any]) -> list[str]:
    lines = [
        "## Whole videos under a cap of device memory",
        "",
        "`vae_tiling=True`, 2 steps, guidance 3, text encoder streamed; set-up from the files on "
        f"disk {facts['caps'][0]['setup_s']:.1f} s.",
        "",
        "| frames | cap GiB | completes | reserved GiB | uncapped GiB | seconds | equal |",
        "|---" * 7 + "|",
    ]
    for row in facts["caps"]:
        if not row["completes"]:
            lines.append(f"| {row['frames']} | {row['cap_gib']} | no: {row['error']} | | | | |")
            continue
        lines.append(
            f"| {row['frames']} | {row['cap_gib']:g} | yes | {row['reserved_gib']:.2f} "
            f"| {row['uncapped_reserved_gib']:.2f} | {row['seconds']:.1f} "
            f"| {'yes' if row['equal'] else 'no'} |"
        )
    return lines


def _describe_flat(facts: dict[str, Any]) -> list[str]:
    part = facts["flat"]
    return [
        f"## {part['videos']} videos in a row",
        "",
        f"{part['sampling']}. From the third to the last, reserved device memory grew by "
        f"{part['reserved_growth']:.2%}, the process in host memory by "
        f"{part['host_rss_growth']:.2%} (to {part['host_rss_bytes'][-1] / 1e9:.2f} GB).",
    ]


_PARTS = {
    "encode": _describe_encode,
    "moments": _describe_moments,
    "caps": _describe_caps,
    "flat": _describe_flat,
}


PARTS = ("encode", "moments", "caps", "flat")
CAPS_GIB = {17: 8.0, 81: 12.0}


class Report:
    """What was measured so far, written whenever something is added."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self._path = path
        self.facts = facts

    def add(self, name: str, result: Any) -> None:
        """Keep a result and write the files anew."""
        self.facts[name] = result
        self._path.write_text(json.dumps(self.facts, indent=1) + "\n")
        self._path.with_suffix(".md").write_text(make_page(self.facts))


@click.command()
@harness.model("wan-14b")
@click.option("--small-model", type=click.Choice(sorted(CONFIGS)), default="wan-1.3b")
@click.option("--parts", default="all", show_default=True, help=f"Of {', '.join(PARTS)}.")
@harness.size()
@harness.size("256x256", flag="--small-size", of=" of the many videos")
@click.option("--videos", default=50, show_default=True, help="How many of them.")
@harness.frames(",".join(map(str, CAPS_GIB)))
@harness.limit(3600.0)
@harness.name("stages")
@harness.folder
@harness.output
def main(
    model: str,
    small_model: str,
    parts: str,
    size: tuple[int, int],
    small_size: tuple[int, int],
    videos: int,
    frames: tuple[int, ...],
    limit_s: float,
    name: str,
    folder: Path,
    output: Path,
) -> None:
    """Measure part after part and write JSON and a Markdown page after each."""
    deadline, device = Deadline(limit_s), find_device()
    chosen = list(PARTS) if parts == "all" else parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise click.BadParameter(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    needed = {small_model if part == "flat" else model for part in chosen}
    harness.check_models(*needed, instead="--model wan-tiny --small-model wan-tiny")
    output.mkdir(parents=True, exist_ok=True)
    report = Report(output / f"{name}.json", {"model": model, **describe_machine(device)})
    for part in chosen:
        if not deadline.allows(0):
            click.echo(f"no time is left for {part}", err=True)
            break
        started = time.monotonic()
        if part == "encode":
            link = {"link_bytes_per_s": measure_link_rate(device)}
            report.add(part, link | measure_encoding(_checkpoint(model, folder), device))
        elif part == "moments":
            experts = _checkpoint(model, folder, boundary_ratio=BOUNDARY_RATIO)
            report.add(part, measure_moments(experts, num_frames=frames[0], **_sides(size)))
        elif part == "caps":
            caps = {count: CAPS_GIB.get(count, max(CAPS_GIB.values())) for count in frames}
            rows: list[dict[str, Any]] = []
            for row in measure_caps(_checkpoint(model, folder), caps, **_sides(size)):
                rows.append(row)
                report.add(part, rows)
        else:
            sampling = {"num_frames": 5, "num_inference_steps": 2, **_sides(small_size)}
            small = _checkpoint(small_model, folder)
            report.add(part, measure_flatness(small, num_videos=videos, **sampling))
        click.echo(f"{part}: {time.monotonic() - started:.0f} s", err=True)
    click.echo(make_page(report.facts))


def _checkpoint(model: str, folder: Path, *, boundary_ratio: float | None = None) -> Path:
    started = time.monotonic()
    path = write_pipeline(model, folder, boundary_ratio=boundary_ratio)
    click.echo(f"{path} is there after {time.monotonic() - started:.0f} s", err=True)
    return path


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return dict(zip(("height", "width"), size, strict=True))


if __name__ == "__main__":
    main()
