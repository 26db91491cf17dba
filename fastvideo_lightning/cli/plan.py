"""The command `fastvideo-lightning plan`: what goes where, before anything is read."""

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from fastvideo_lightning.checkpoint.parts import find_parts
from fastvideo_lightning.cli.options import (
    FLAGS,
    MODEL,
    SAMPLING,
    GroupedCommand,
    GroupedOption,
    HostMemoryType,
    make_options,
    read_components,
)
from fastvideo_lightning.config import OffloadConfig, SamplingParams

if TYPE_CHECKING:
    from fastvideo_lightning.plan import Plan

_NAMES = {
    "model",
    "base",
    "component",
    "revision",
    "variant",
    "allow_pickle",
    "dtype",
    "height",
    "width",
    "num_frames",
}
_NAMES |= {"num_gpus", "num_inference_steps", "guidance_scale", "image_path", *FLAGS} - {"on_oom"}
_SIZE = {"height", "width", "num_frames"}
_EXAMPLES = """\b
Examples:
  fastvideo-lightning plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --gpu "RTX 4090"
  fastvideo-lightning plan --model ./my-pipeline --num-frames 17 --gpu-memory-budget 12

Reads headers, no weight, and works without a GPU. A flag that is given is kept; the others are
chosen for the budget. Without a budget: what is free on the GPU, or on the card that --gpu names.
Where the model's own size does not fit there, the plan is for the nearest that does, and says so.
"""


def _options() -> list[click.Parameter]:
    options = [option for option in make_options() if option.name in _NAMES - {"host_memory"}]
    rate = click.FloatRange(min=0, min_open=True)
    card = 'Plan for this card, such as "RTX 4090", instead of the one here.'
    host = "GiB of host memory to plan for; or where the host's copies wait."
    disk = "GB/s that the disk of the weights reads; otherwise 2."
    link = "GB/s from host memory to the GPU, in place of the card's own lanes."
    return [
        *options,
        GroupedOption("gpu", group=MODEL, text=card),
        GroupedOption("host_memory", group=MODEL, kind=HostMemoryType(), text=host),
        GroupedOption("disk", group=MODEL, kind=rate, text=disk),
        GroupedOption("link", group=MODEL, kind=rate, text=link),
    ]


@click.command(
    cls=GroupedCommand,
    epilog=_EXAMPLES,
    params=_options(),
    short_help="Print what goes where, and how long it takes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
@click.pass_context
def plan(
    context: click.Context, /, gpu: str | None, as_json: bool, debug: bool, **given: Any
) -> None:
    """Print what goes where for a model and a video, and the time and memory that it takes."""
    from fastvideo_lightning.cli.console import quieten_libraries, waiting
    from fastvideo_lightning.cli.errors import usage_errors

    if not (debug or (context.parent and context.parent.params["debug"])):
        quieten_libraries()
    typed = {name: value for name, value in given.items() if value is not None}
    hardware: dict[str, float] = {
        name: typed.pop(name) for name in ("disk", "link") if name in typed
    }
    if isinstance(typed.get("host_memory"), float):
        hardware["host_memory"] = typed.pop("host_memory")
    with usage_errors(ImportError):
        config = OffloadConfig.from_mapping({k: v for k, v in typed.items() if k in FLAGS})
        params = SamplingParams.from_mapping({k: v for k, v in typed.items() if k in SAMPLING})
        with waiting("planning"):
            made = _make(typed, config, params, gpu, hardware)
    if as_json:
        click.echo(json.dumps(made.to_dict(), indent=1))
    else:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console.width = 100
        console.print(made, soft_wrap=not console.is_terminal, crop=False)
        if made.machine is None:
            click.echo('Name a card for times: --gpu "RTX 4090".', err=True)


def _make(
    typed: dict[str, Any],
    config: OffloadConfig,
    params: SamplingParams,
    gpu: str | None,
    hardware: dict[str, float],
) -> "Plan":
    from fastvideo_lightning.plan.machine import find_card

    if gpu is not None:
        find_card(gpu)  # before seconds of imports
    read_components(typed)
    where: dict[str, Any] = {n: typed[n] for n in ("base", "component", "revision") if n in typed}
    find_parts(typed.get("model", "tiny-shapes"), **where)
    each = config.num_processes_each
    num_gpus = typed.get("num_gpus", each)
    if num_gpus % each:
        shown = [f"context_parallel={config.context_parallel}"] * (config.context_parallel > 1)
        shown += [f"guidance_parallel={config.guidance_parallel}"] * (config.guidance_parallel > 1)
        raise ValueError(
            f"{' and '.join(shown)} {'do' if len(shown) > 1 else 'does'} not divide "
            f"num_gpus={num_gpus}. Pass num_gpus={-(-num_gpus // each) * each}."
        )
    import torch

    from fastvideo_lightning.plan import BudgetTooSmallError, make_plan
    from fastvideo_lightning.plan.choose import round_up

    loading = where | {k: typed[k] for k in ("variant", "allow_pickle") if k in typed}
    known = gpu is not None or torch.cuda.is_available()
    plan_video = partial(
        make_plan,
        typed.get("model", "tiny-shapes"),
        budget_gib=config.gpu_memory_budget or ("auto" if known else None),
        card=gpu,
        flags=config,
        dtype=typed.get("dtype", "auto"),
        num_gpus=num_gpus,
        host_memory_gib=hardware.get("host_memory"),
        disk_gb_per_s=hardware.get("disk"),
        link_gb_per_s=hardware.get("link"),
        loading=loading,
    )
    try:
        return plan_video(params)
    except BudgetTooSmallError as error:
        if not error.fitting or _SIZE & typed.keys() or config.gpu_memory_budget is not None:
            raise
        made = plan_video(params.merge(**error.fitting))
        options = " ".join(f"--{n.replace('_', '-')} {v}" for n, v in error.fitting.items())
        instead = (
            f"The model's own size, {error.video}, takes {round_up(error.smallest_bytes)} GiB of "
            f"GPU memory at least, which is too much here. This is the plan for {options}."
        )
        return replace(made, origin=f"{instead} {made.origin}".rstrip())
