"""What a plan changes of the pixels, what it leaves out and what would help, in sentences."""

from dataclasses import replace

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan.component_plan import ON_CPU
from fastvideo_lightning.plan.machine import Machine
from fastvideo_lightning.plan.predict import Prediction, predict
from fastvideo_lightning.plan.workload import Workload


def make_notes(subject: Workload, prediction: Prediction, machine: Machine | None) -> list[str]:
    """Return a sentence for each thing that one has to know to read the plan rightly."""
    config = prediction.config
    notes = [*_on_pixels(config), *_on_experts(subject, config), *_on_speed(config, machine)]
    notes += _without_effect(prediction)
    notes += _on_launches(subject, prediction, machine)
    notes += _on_hours(subject, prediction, machine)
    if not subject.is_known:
        notes.append(
            f"A first guess: {subject.pipeline} is no Wan pipeline, for which the formulas are. "
            "The report of a first video says more."
        )
    if subject.is_quantized and machine is not None:
        notes.append("Quantized weights are widened in each call: that time is a first guess.")
    computes_on_cpu = any(part.where == ON_CPU for part in prediction.components)
    if machine is not None and computes_on_cpu and machine.source != "measured here":
        notes.append(
            f"The CPU is taken to reach {machine.cpu_flops / 1e12:g} TFLOP/s in bf16; "
            "`fastvideo-lightning probe` measures it."
        )
    return notes


def notes_on_gpus(num_gpus: int, prediction: Prediction, machine: Machine | None) -> list[str]:
    """Return a sentence for each thing that several GPUs change of the plan for one of them."""
    if num_gpus == 1:
        return []
    config = prediction.config
    notes = [f"num_gpus={num_gpus}: the GPU memory is that of each GPU"]
    each = config.num_processes_each
    if machine is not None and each == 1:
        notes[0] += f", the time that of {num_gpus} videos, one on each"
    elif machine is not None and num_gpus > each:
        notes[0] += f", the time that of {num_gpus // each} videos, {each} GPUs on each"
    notes[0] += "."
    if config.dit_layerwise_offload:
        notes.append(
            f"The {num_gpus} GPUs hold the streamed blocks once in a machine's host memory"
            + (", and where the link decides they take less time than this." if machine else ".")
        )
    if each == 1:
        notes.append(f"For one video sooner: context_parallel={num_gpus}.")
    return notes


def _without_effect(prediction: Prediction) -> list[str]:
    config, notes = prediction.config, []
    if config.num_slots != OffloadConfig.num_slots and not prediction.slot_bytes:
        notes.append(f"num_slots={config.num_slots} has no effect: nothing streams.")
    if config.dit_resident_blocks and not config.dit_layerwise_offload:
        notes.append("dit_resident_blocks has no effect: all of the denoiser is resident.")
    return notes


def _on_pixels(config: OffloadConfig) -> list[str]:
    if config.vae_tiling:
        return ["The VAE decodes in tiles, which changes pixels slightly."]
    return []


def _on_experts(subject: Workload, config: OffloadConfig) -> list[str]:
    if not (subject.takes_turns and config.dit_layerwise_offload and config.dit_resident_blocks):
        return []
    experts = " and ".join(size.fqn for size in subject.by_role(Role.DENOISER))
    return [f"{experts} take turns: the resident blocks of one take the place of the other's."]


def _on_speed(config: OffloadConfig, machine: Machine | None) -> list[str]:
    notes = []
    if config.cache is not None:
        text = f"cache={config.cache!r}: what it keeps on the GPU is counted"
        notes.append(f"{text}, the time that it saves is not." if machine else f"{text}.")
    if config.compile and machine is not None:
        notes.append("compile=True: compiling itself, before the first steps, is not in the times.")
    if config.cuda_graphs:
        notes.append("cuda_graphs=True: the memory that graphs keep is a first guess.")
    if config.attention_backend is not None and machine is not None:
        notes.append(
            f"attention_backend={config.attention_backend!r}: times are those of torch's own."
        )
    if config.context_parallel > 1:
        notes.append(
            f"context_parallel={config.context_parallel}: planned as if each GPU made the whole "
            "video; it takes less memory, and less time, than this."
        )
    if config.guidance_parallel > 1:
        notes.append("guidance_parallel=2: each of two GPUs makes one of the two calls of a step.")
    return notes


def _on_launches(subject: Workload, prediction: Prediction, machine: Machine | None) -> list[str]:
    """Name the flag that takes launches out of the steps, where they set the pace and it can be."""
    now = prediction.stages[1]
    if machine is None or now.bound != "launches" or prediction.config.cuda_graphs:
        return []
    try:
        config = replace(prediction.config, cuda_graphs=True)
    except ValueError:  # it cannot be combined with another flag
        return []
    then = predict(subject, config, machine).stages[1]
    return [
        "The CPU launches kernels slower than the GPU computes them: with cuda_graphs=True all "
        f"steps together would take {then.time_s:.2g} s in place of {now.time_s:.2g}."
    ]


FEW_STEPS = 4
"""Of an adapter for few steps, which needs no guidance."""

_HOUR_S = 3600


def few_steps_s(subject: Workload, config: OffloadConfig, machine: Machine) -> float:
    """Seconds of a video with `FEW_STEPS` steps and without guidance."""
    few = replace(subject.request, num_steps=FEW_STEPS, num_calls=1)
    return predict(replace(subject, request=few), config, machine).time_s


def _on_hours(subject: Workload, prediction: Prediction, machine: Machine | None) -> list[str]:
    """Name the way with few steps where a video takes an hour or more, and what it takes then."""
    if machine is None or prediction.time_s < _HOUR_S or not subject.is_known:
        return []
    if subject.request.num_steps <= 2 * FEW_STEPS:
        return []
    minutes = few_steps_s(subject, prediction.config, machine) / 60
    return [
        f"Sooner: with an adapter that was made for {FEW_STEPS} steps, --lora FILE "
        f"--num-inference-steps {FEW_STEPS} --guidance-scale 1 takes {minutes:.0f} min "
        "(docs/adapters.md, 'Few steps')."
    ]
