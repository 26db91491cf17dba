"""The command `fastvideo-lightning serve`: the web page."""

import importlib.util
import os
import threading
from typing import TYPE_CHECKING, Any

import click

from fastvideo_lightning.checkpoint.parts import find_parts
from fastvideo_lightning.checkpoint.quantization import check_quantization
from fastvideo_lightning.cli.config_file import read_config_file
from fastvideo_lightning.cli.options import (
    DEFAULTS,
    FLAGS,
    GroupedCommand,
    GroupedOption,
    WrongChoiceError,
    make_options,
    read_components,
)
from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.config.conflicts import check_auto_budget
from fastvideo_lightning.config.devices import check_devices

if TYPE_CHECKING:
    from fastvideo_lightning.serve.studio import Studio

_EXAMPLES = """\b
Examples:
  fastvideo-lightning serve
  fastvideo-lightning serve --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --port 8000
  fastvideo-lightning serve --max-side 832 --max-frames 81 --max-queue 4
  fastvideo-lightning serve --config my-page.yaml

The page answers to this machine alone. `--host 0.0.0.0` opens it to everybody who can reach the
machine: it asks nobody for a password.
"""
_PAGE, _LIMITS = "Page", "Limits"
_NEEDED = {"gradio": "Gradio", "matplotlib": "matplotlib"}
_OF_THE_MODEL = (
    "model",
    "base",
    "component",
    "revision",
    "variant",
    "allow_pickle",
    "dtype",
    "accelerator",
)
# The page is one process with one GPU.
_OF_SEVERAL_GPUS = {
    *("use_fsdp_inference", "dit_cpu_offload", "shard_transport"),
    *("context_parallel", "guidance_parallel"),
}

_FINDING = ("base", "component", "revision")
_LOADING = (*_FINDING, "dtype", "variant", "allow_pickle")


def _options() -> list[click.Parameter]:
    """Return the options of `generate` that concern the model, then the page's own."""
    shared = {option.name: option for option in make_options()}
    flags = [flag for flag in FLAGS if flag not in _OF_SEVERAL_GPUS]
    names = (*_OF_THE_MODEL, "output_path", *flags)
    kept: list[click.Parameter] = [shared[name] for name in names]
    rows = [
        ("host", _PAGE, str, "Address to listen on. [default: 127.0.0.1]"),
        ("port", _PAGE, click.IntRange(1, 65535), "Port to listen on. [default: 7860]"),
        ("max_side", _LIMITS, click.IntRange(min=1), "Pixels of height and width. [default: 1280]"),
        ("max_frames", _LIMITS, click.IntRange(min=1), "Frames of a video. [default: 161]"),
        ("max_steps", _LIMITS, click.IntRange(min=1), "Denoising steps. [default: 100]"),
        ("max_queue", _LIMITS, click.IntRange(min=1), "Videos that may wait. [default: 8]"),
    ]
    return kept + [GroupedOption(n, group=g, kind=kind, text=text) for n, g, kind, text in rows]


@click.command(
    cls=GroupedCommand,
    epilog=_EXAMPLES,
    params=_options(),
    short_help="Make videos from a page in the browser.",
)
@click.option("--config", metavar="FILE", help="YAML file with any of these options.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
@click.pass_context
def serve(context: click.Context, /, config: str | None, debug: bool, **given: Any) -> None:
    """Make videos from a page in the browser, one after the other, until Ctrl-C."""
    from fastvideo_lightning.cli.console import quieten_libraries, waiting
    from fastvideo_lightning.cli.errors import usage_errors

    for package, called in _NEEDED.items():
        if importlib.util.find_spec(package) is None:
            raise WrongChoiceError(
                f"The page needs {called}, which is not installed. "
                'Install it: pip install "fastvideo-lightning[serve]"',
                context,
            )
    if not (debug or (context.parent and context.parent.params["debug"])):
        quieten_libraries()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from_file = read_config_file(config, context.command.params) if config else {}
    typed = {name: value for name, value in given.items() if value is not None}
    choices = {**DEFAULTS, **from_file, **typed}
    host, port = choices.get("host", "127.0.0.1"), choices.get("port", 7860)
    with waiting("loading libraries"):
        with usage_errors(ImportError):
            read_components(choices)
            find_parts(choices["model"], **{n: choices[n] for n in _FINDING if n in choices})
            check_quantization(choices["dtype"])
            flags = OffloadConfig.from_mapping({k: v for k, v in choices.items() if k in FLAGS})
            # Seconds of imports from here on.
            device_type = check_devices(1, choices["accelerator"])
            check_auto_budget(flags.gpu_memory_budget, on_gpu=device_type != "cpu")
            from fastvideo_lightning.output.files import check_output_folder
            from fastvideo_lightning.serve.server import LOCAL_HOSTS, check_address, serving

            check_address(host, port)
            check_output_folder(choices["output_path"])
        studio = _open_studio(choices, flags, device_type)
    with serving(studio, host=host, port=port) as address:
        click.echo(address)
        if host not in LOCAL_HOSTS:
            click.echo("Everybody who can reach this machine can use the page.", err=True)
        click.echo("Press Ctrl-C to end.", err=True)
        threading.Event().wait()


def _open_studio(choices: dict[str, Any], config: OffloadConfig, device_type: str) -> "Studio":
    from fastvideo_lightning import CheckpointError
    from fastvideo_lightning.cli.errors import usage_errors
    from fastvideo_lightning.serve.limits import Limits
    from fastvideo_lightning.serve.studio import Model, Studio

    with usage_errors(CheckpointError):
        model = Model(
            name=choices["model"],
            config=config,
            accelerator=choices["accelerator"],
            device_type=device_type,
            loading={k: choices[k] for k in _LOADING if k in choices},
        )
        limits = {k: v for k, v in choices.items() if k in Limits.__dataclass_fields__}
        return Studio(model, output_path=choices["output_path"], limits=Limits(**limits))
