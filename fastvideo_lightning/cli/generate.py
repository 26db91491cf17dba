"""The command `fastvideo-lightning generate`: a video from a prompt, or one from each of many.

With `--report` a callback watches the run, and the plan is held against it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvideo_lightning.checkpoint.parts import find_parts
from fastvideo_lightning.checkpoint.quantization import check_quantization
from fastvideo_lightning.cli.batch import STOPPED, read_prompts, report_batch
from fastvideo_lightning.cli.config_file import read_config_file
from fastvideo_lightning.cli.console import (
    be_quiet,
    is_first_process,
    quieten_libraries,
    say,
    waiting,
)
from fastvideo_lightning.cli.errors import usage_errors
from fastvideo_lightning.cli.options import (
    COMMAND,
    DEFAULTS,
    FLAGS,
    SAMPLING,
    GroupedCommand,
    WrongChoiceError,
    make_options,
    read_components,
)
from fastvideo_lightning.config import LoraChoice, OffloadConfig, SamplingParams
from fastvideo_lightning.config.conflicts import check_dtype
from fastvideo_lightning.libraries import check_installed
from fastvideo_lightning.prompts.dataset import ResolvedPrompt, check_prompt

if TYPE_CHECKING:
    from fastvideo_lightning.callbacks import MemoryReport
    from fastvideo_lightning.generator.generator import VideoGenerator
    from fastvideo_lightning.output.video import GeneratedVideo


_EXAMPLES = f"""\b
Examples:
  {COMMAND} generate --prompt "a red circle moves right"
  {COMMAND} generate --prompt "a blue square moves up" --num-frames 33 --seed 7
  {COMMAND} generate --prompts prompts.txt --output-path night/
  {COMMAND} generate --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompt "..." --no-vae-cpu-offload
  {COMMAND} generate --config my-video.yaml --seed 8

A YAML file for --config holds option names and values, one a line, as in `num-frames: 17`. What is
typed wins over the file.
"""

_OPENING = (
    *("base", "component", "num_gpus", "accelerator", "dtype"),
    *("revision", "variant", "allow_pickle"),
)
_OF_BATCH = ("output_path", "resume", "fail_fast", "shard", "seeds")
_AGAIN = "The video was not made. Run the same command again to make it."


@dataclass(frozen=True)
class Request:
    """What was asked for, every part checked as far as that needs no model."""

    prompt: str | None
    prompts: list[dict[str, Any]] | None  # of a batch
    config: OffloadConfig
    params: SamplingParams
    choices: dict[str, Any]  # model, dtype, ...: what neither of the two above holds

    @classmethod
    def from_options(cls, given: dict[str, Any]) -> "Request":
        """Make one from option names and values, leaving out what was not given."""
        prompts = read_prompts(given)
        read_components(given)
        if "prompt" not in given and prompts is None:
            raise WrongChoiceError(
                '--prompt is missing. Describe the video: --prompt "a red circle moves right".'
            )
        _check_effects(given)
        params = SamplingParams.from_mapping({k: v for k, v in given.items() if k in SAMPLING})
        for name in ("image_path", "last_image_path", "video_path"):
            path = getattr(params, name)
            if path is not None and not Path(path).is_file():
                kind = "a video" if name == "video_path" else "an image"
                raise FileNotFoundError(f"{name}: there is no file {path!r}. Pass {kind} file.")
        others = given.keys() - {"prompt", "prompts", *SAMPLING, *FLAGS}
        request = cls(
            prompt=check_prompt(given["prompt"]) if prompts is None else None,
            prompts=prompts,
            config=OffloadConfig.from_mapping({k: v for k, v in given.items() if k in FLAGS}),
            params=params,
            choices=DEFAULTS | {name: given[name] for name in others},
        )
        request.check_choices()
        return request

    def check_choices(self) -> None:
        """Check what needs no import of seconds: the model's folder, packages, where to write.

        Raises:
            ImportError: If a package is missing that a choice needs.
            ValueError, OSError: If nothing can be written where it is asked for.
        """
        from fastvideo_lightning.output.files import check_output_folder
        from fastvideo_lightning.report import check_report_path

        find_parts(
            self.choices["model"],
            **{n: self.choices[n] for n in ("base", "component", "revision") if n in self.choices},
        )
        check_dtype(self.choices["dtype"], self.config)
        check_quantization(self.choices["dtype"])
        if "lora" in self.choices:
            check_installed("peft", extra="lora", needed_by="--lora")
        if self.choices["save_video"]:
            check_output_folder(self.choices["output_path"])
        if "report" in self.choices:
            check_report_path(self.choices["report"])


def _check_effects(given: dict[str, Any]) -> None:
    """Refuse options that say something of what is not done here."""
    if not given.keys() & {"prompts", "seeds"}:
        for name in ("resume", "fail_fast", "shard"):
            if name in given:
                typed = f"--{'' if given[name] else 'no-'}{name.replace('_', '-')}"
                raise WrongChoiceError(
                    f"{typed} is for a batch, and this is one video. Leave it out, or pass "
                    "--prompts FILE."
                )
    if given.get("save_video") is False and "output_path" in given:
        raise WrongChoiceError(
            "--output-path says where videos are written, and --no-save-video that none is. "
            "Leave one of the two out."
        )


@click.command(
    cls=GroupedCommand,
    epilog=_EXAMPLES,
    params=make_options(),
    short_help="Make a video, or one from each of many prompts.",
)
@click.option("--config", metavar="FILE", help="YAML file with any of these options.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
@click.pass_context
def generate(context: click.Context, /, config: str | None, debug: bool, **given: Any) -> None:
    """Make a video from a prompt, or one from each of many, and print the path of every mp4."""
    debug = debug or bool(context.parent and context.parent.params["debug"])
    from_file = read_config_file(config, context.command.params) if config else {}
    typed = {name: value for name, value in given.items() if value is not None}
    if {"prompt", "prompts"} & typed.keys():  # one of them takes the place of either in the file
        from_file = {k: v for k, v in from_file.items() if k not in ("prompt", "prompts")}
    with usage_errors(ImportError):
        request = Request.from_options({**from_file, **typed})
    be_quiet(request.choices["quiet"])
    if not debug:
        quieten_libraries()
    _make_video(request)


def _make_video(request: Request) -> None:
    choices = request.choices
    # OpenMP reads it when torch is imported. Threads that spin while they wait for each other make
    # a small model many times slower wherever other programs use the cores too; asleep, they cost
    # it some tenths of a second.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with waiting("loading libraries"):
            generator, prompt = _open(request)
    except KeyboardInterrupt as stop:
        if request.prompts is None:
            stop.add_note(_AGAIN)
            raise
        say("Stopped before a video was begun. Run the same command again to make them.")
        raise click.exceptions.Exit(STOPPED) from None
    loras = choices.get("lora", ())
    with generator:
        if prompt is not None or loras:  # a batch that is done reads no weight
            generator.setup(None if prompt is None else prompt.params)
        with usage_errors(ImportError):
            _load_loras(generator, loras)
        if request.prompts is not None:
            _make_batch(generator, request, request.prompts)
            _say_all_made()
            return
        assert prompt is not None
        try:
            video = generator.generate_video(
                prompt, output_path=choices["output_path"], save_video=choices["save_video"]
            )
        except KeyboardInterrupt as stop:
            stop.add_note(_AGAIN)
            raise
        _say_all_made()
    if is_first_process():
        _report(video)


def _say_all_made() -> None:
    """From here on nothing that becomes of other processes is a failure."""
    from fastvideo_lightning.strategies.launcher import note_exit

    note_exit(0)


def _load_loras(generator: "VideoGenerator", loras: Sequence[LoraChoice]) -> None:
    if not loras:
        return
    from fastvideo_lightning.modules.lora_files import name_each

    for lora, name in zip(loras, name_each(loras), strict=True):
        generator.load_lora(lora.path, weight=lora.weight, name=name, denoiser=lora.denoiser)


def _open(request: Request) -> "tuple[VideoGenerator, ResolvedPrompt | None]":
    """The generator of a request and its prompt, checked against machine and model."""
    choices = request.choices
    # Seconds of imports from here on.
    from fastvideo_lightning import CheckpointError, VideoGenerator
    from fastvideo_lightning.callbacks import MemoryReport

    with usage_errors(CheckpointError):
        path, quiet = choices.get("report"), choices["quiet"]
        reports = [MemoryReport(path, quiet=quiet)] if path is not None else []
        generator = VideoGenerator.open(
            choices["model"],
            request.config,
            callbacks=reports,
            progress=not quiet,
            **{name: choices[name] for name in _OPENING if name in choices},
        )
        if "lora" in choices:
            generator.module.check_takes_lora(*(lora.denoiser for lora in choices["lora"]))
        if request.prompt is None:
            return generator, None
        prompt = generator.resolve(request.prompt, **request.params.given())
        for report in reports:
            _plan_report(report, generator, prompt.params)
        generator.plan(prompt.params)
        return generator, prompt


def _plan_report(
    report: "MemoryReport", generator: "VideoGenerator", params: SamplingParams
) -> None:
    """Have a report hold the video against its plan, where there is device memory to plan."""
    if generator.device_type == "cpu" or generator.config.use_fsdp_inference:
        return
    from fastvideo_lightning.plan import make_plan

    plan = make_plan(generator.module, params, flags=generator.config)
    report.plan = plan.to_dict()
    report.link_bytes_per_s = None if plan.machine is None else plan.machine.link_bytes_per_s


def _make_batch(
    generator: "VideoGenerator", request: Request, prompts: list[dict[str, Any]]
) -> None:
    choices = request.choices
    with usage_errors():
        batch = generator.generate_videos(
            prompts,
            **{name: choices[name] for name in _OF_BATCH},
            **request.params.given(),
        )
    report_batch(batch, choices["output_path"], report=choices.get("report"))


def _report(video: "GeneratedVideo") -> None:
    if video.video_path is not None:
        click.echo(video.video_path)
    say(video.summary)
