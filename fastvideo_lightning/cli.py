"""The command `fastvideo-lightning`.

It reads and checks everything that was typed before it imports what takes seconds, and everything
about the model before a weight is read. stdout gets the path of the video and nothing else.
"""

import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvideo_lightning import __version__
from fastvideo_lightning.commands.batch import STOPPED, read_prompts, report_batch
from fastvideo_lightning.commands.models import models
from fastvideo_lightning.commands.pack import pack
from fastvideo_lightning.commands.plan import plan
from fastvideo_lightning.commands.probe import probe
from fastvideo_lightning.commands.report import watch_run
from fastvideo_lightning.commands.serve import serve
from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.messages import (
    be_quiet,
    is_first_process,
    quieten_libraries,
    say,
    show_own_log,
)
from fastvideo_lightning.options import (
    DEFAULTS,
    FLAGS,
    SAMPLING,
    GroupedCommand,
    WrongChoiceError,
    in_command_words,
    make_options,
    read_config_file,
)
from fastvideo_lightning.prompts import check_prompt

if TYPE_CHECKING:
    from fastvideo_lightning.generator import VideoGenerator
    from fastvideo_lightning.output import GeneratedVideo

COMMAND = "fastvideo-lightning"
FAILED, WRONG_CHOICE = 1, 2

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # `--num_frames` is `--num-frames`.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}
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
        if "prompt" not in given and prompts is None:
            raise WrongChoiceError(
                '--prompt is missing. Describe the video: --prompt "a red circle moves right".'
            )
        params = SamplingParams.from_mapping({k: v for k, v in given.items() if k in SAMPLING})
        for name in ("image_path", "last_image_path", "video_path"):
            path = getattr(params, name)
            if path is not None and not Path(path).is_file():
                kind = "a video" if name == "video_path" else "an image"
                raise WrongChoiceError(f"{name}: there is no file {path!r}. Pass {kind} file.")
        return cls(
            prompt=check_prompt(given["prompt"]) if prompts is None else None,
            prompts=prompts,
            config=OffloadConfig.from_mapping({k: v for k, v in given.items() if k in FLAGS}),
            params=params,
            choices={
                **DEFAULTS,
                **{
                    k: v
                    for k, v in given.items()
                    if k not in {"prompt", "prompts", *SAMPLING, *FLAGS}
                },
            },
        )


@click.group(context_settings=_SETTINGS, epilog=f"Start with: {COMMAND} generate --help")
@click.version_option(__version__, prog_name=COMMAND)
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
def cli(debug: bool) -> None:
    """Make videos with diffusion models that need not fit on the GPU."""


@cli.command(cls=GroupedCommand, epilog=_EXAMPLES, params=make_options())
@click.option("--config", metavar="FILE", help="YAML file with any of these options.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
@click.pass_context
def generate(context: click.Context, /, config: str | None, debug: bool, **given: Any) -> None:
    """Make a video from a prompt, or one from each of many, and print the path of every mp4."""
    debug = debug or bool(context.parent and context.parent.params["debug"])
    from_file = read_config_file(config, context.command.params) if config else {}
    typed = {name: value for name, value in given.items() if value is not None}
    with users_mistakes():
        request = Request.from_options({**from_file, **typed})
    be_quiet(request.choices["quiet"])
    if not debug:
        quieten_libraries()
    _make_video(request)


cli.add_command(models)
cli.add_command(pack)
cli.add_command(plan)
cli.add_command(probe)
cli.add_command(serve)


def _make_video(request: Request) -> None:
    choices = request.choices
    with users_mistakes():
        from fastvideo_lightning.output import check_output_folder

        if choices["save_video"]:
            check_output_folder(choices["output_path"])
    # OpenMP reads it when torch is imported. Threads that spin while they wait for each other make
    # a small model many times slower wherever other programs use the cores too; asleep, they cost
    # it some tenths of a second.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Seconds of imports from here on.
    from fastvideo_lightning import CheckpointError, VideoGenerator, VideoModule
    from fastvideo_lightning.devices import check_devices

    with users_mistakes(CheckpointError):
        device_type = check_devices(choices["num_gpus"], choices["accelerator"])
        module = VideoModule.from_pretrained(
            choices["model"],
            dtype=choices["dtype"],
            revision=choices.get("revision"),
            variant=choices.get("variant"),
            allow_pickle=choices["allow_pickle"],
            device_type="cpu" if device_type == "cpu" else None,
        )
        module.context_parallel = request.config.context_parallel
        if request.prompts is None:
            module.resolve_sampling(request.params)
        watching = watch_run(
            choices.get("report"),
            module,
            request.config,
            request.params if request.prompts is None else None,
            on_gpu=device_type != "cpu",
            quiet=choices["quiet"],
        )
        generator = VideoGenerator(
            module,
            request.config,
            num_gpus=choices["num_gpus"],
            accelerator=choices["accelerator"],
            progress=not choices["quiet"],
            **watching,
        )
        if request.prompts is None:
            generator.plan(**request.params.given())
    with generator:
        if request.prompts is not None:
            _make_batch(generator, request, request.prompts)
            return
        assert request.prompt is not None
        generator.setup(request.params)
        with users_mistakes(ImportError):
            for lora in choices.get("lora", ()):
                generator.load_lora(lora.path, weight=lora.weight)
        video = generator.generate_video(
            request.prompt,
            output_path=choices["output_path"],
            save_video=choices["save_video"],
            **request.params.given(),
        )
    if is_first_process():
        _report(video)


def _make_batch(
    generator: "VideoGenerator", request: Request, prompts: list[dict[str, Any]]
) -> None:
    choices = request.choices
    with users_mistakes():
        batch = generator.generate_videos(
            prompts,
            **{name: choices[name] for name in ("output_path", "resume", "fail_fast")},
            **request.params.given(),
        )
    report_batch(batch, choices["output_path"])


def _report(video: "GeneratedVideo") -> None:
    frames, height, width, _ = video.frames.shape
    if video.video_path is not None:
        click.echo(video.video_path)
    say(
        f"{width}x{height}, {frames} frames at {video.fps} fps, seed {video.seed}: "
        f"made in {video.generation_time_s:.1f} s"
    )


@contextmanager
def users_mistakes(*also: type[Exception]) -> Iterator[None]:
    """Mark errors before the work as the user's to mend: they end with exit code 2."""
    kinds: list[type[Exception]] = [ValueError, TypeError, OSError, *also]
    try:
        yield
    except click.UsageError:
        raise
    except tuple(kinds) as error:
        raise WrongChoiceError(str(error), click.get_current_context(silent=True)) from error


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see `main`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    failure: Exception
    try:
        return cli.main(arguments, prog_name=COMMAND, standalone_mode=False) or 0
    except (click.Abort, KeyboardInterrupt):
        if _should_show(KeyboardInterrupt()):
            click.echo("Stopped.", err=True)
        return STOPPED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_CHOICE
    except click.ClickException as error:
        failure, code, lines = error, WRONG_CHOICE, _explain_click(error)
    except Exception as error:
        says_enough = isinstance(error, RuntimeError | ValueError | OSError) and str(error)
        text = str(error) if says_enough else f"{type(error).__name__}: {error}"
        hint = "Add --debug to see where it failed."
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            hint = "Free some space and run the same command again."
        lines = _in_two_lines(text, hint)
        failure, code = error, FAILED
    if not _should_show(failure, is_told=code == WRONG_CHOICE):
        return code
    if "--debug" in arguments:
        traceback.print_exception(failure)
    click.echo("\n".join(["Error: " + lines[0], *lines[1:]]), err=True)
    return code


def _should_show(failure: BaseException, *, is_told: bool = False) -> bool:
    """Whether this process is the one to show a failure, of several that make the videos."""
    launching = sys.modules.get("fastvideo_lightning.strategies.launching")
    is_cause = launching is None or launching.note_failure(failure, is_told=is_told)
    return is_cause and is_first_process()


def _explain_click(error: click.ClickException) -> list[str]:
    asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
    see_help = f"See {asked if ' ' in asked else f'{COMMAND} generate'} --help."
    if not isinstance(error, click.NoSuchOption):
        return _in_two_lines(error.format_message(), see_help)
    name = error.option_name
    of_generate = [opt for param in generate.params for opt in (*param.opts, *param.secondary_opts)]
    is_group = error.ctx is not None and error.ctx.command is cli
    if is_group and name in of_generate:
        return [f"no such option: {name}", f"Say first what to do: {COMMAND} generate {name} ..."]
    near = error.possibilities or []
    return [f"no such option: {name}", f"Did you mean {near[0]}?" if near else see_help]


def _in_two_lines(text: str, otherwise: str) -> list[str]:
    """Split into what is wrong and what to type; `otherwise` is the second line where none is."""
    line, *_ = text.strip().splitlines() or [""]
    what, *suggestion = re.split(r"(?<=[.?!]) (?=[A-Z])", in_command_words(line), maxsplit=1)
    return [what, *(suggestion or [otherwise])]


def main() -> None:
    """Run the command and exit: 0, 1 (failed while running), 2 (wrong choice), 130 (Ctrl-C)."""
    # As Ctrl-C does, so that a half-made file goes before the process does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    show_own_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run())
