"""The command `fastvideo-lightning`.

It reads and checks everything that was typed before it imports what takes seconds, and everything
about the model before a weight is read. stdout gets the path of the video and nothing else.
"""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from fastvideo_lightning.cli.batch import STOPPED
from fastvideo_lightning.cli.batch_status import batch_status
from fastvideo_lightning.cli.console import is_first_process, show_own_log
from fastvideo_lightning.cli.errors import as_cli_options, explain, in_two_lines
from fastvideo_lightning.cli.gallery import gallery
from fastvideo_lightning.cli.generate import generate
from fastvideo_lightning.cli.models import models
from fastvideo_lightning.cli.options import COMMAND
from fastvideo_lightning.cli.pack import pack
from fastvideo_lightning.cli.plan import plan
from fastvideo_lightning.cli.probe import probe
from fastvideo_lightning.cli.serve import serve
from fastvideo_lightning.version import __version__

FAILED, WRONG_CHOICE = 1, 2

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # `--num_frames` is `--num-frames`.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


@click.group(context_settings=_SETTINGS, epilog=f"Start with: {COMMAND} generate --help")
@click.version_option(__version__, prog_name=COMMAND)
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries say.")
def cli(debug: bool) -> None:
    """Make videos with diffusion models that need not fit on the GPU."""


cli.add_command(gallery)
cli.add_command(batch_status)
cli.add_command(generate)
cli.add_command(models)
cli.add_command(pack)
cli.add_command(plan)
cli.add_command(probe)
cli.add_command(serve)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see `main`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    failure: Exception
    try:
        return cli.main(arguments, prog_name=COMMAND, standalone_mode=False) or 0
    except (click.Abort, KeyboardInterrupt) as stop:
        if _is_cause(KeyboardInterrupt()) and is_first_process():
            notes = getattr(stop.__cause__ or stop, "__notes__", ())  # click wraps it
            click.echo(" ".join(["Stopped.", *notes]), err=True)
        return STOPPED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_CHOICE
    except click.ClickException as error:
        failure, code, lines = error, WRONG_CHOICE, explain(error, cli, arguments)
    except Exception as error:
        says_enough = isinstance(error, RuntimeError | ValueError | OSError) and str(error)
        text = str(error) if says_enough else f"{type(error).__name__}: {error}"
        hint = "Add --debug to see where it failed."
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            hint = "Free some space and run the same command again."
        notes = map(as_cli_options, getattr(error, "__notes__", ()))
        lines = [*in_two_lines(as_cli_options(text), hint), *notes]
        failure, code = error, FAILED
    is_cause, shows = _is_cause(failure, is_told=code == WRONG_CHOICE), is_first_process()
    if "--debug" in arguments and is_cause and (shows or code == FAILED):
        traceback.print_exception(failure)
    if is_cause and shows:
        click.echo("\n".join(["Error: " + lines[0], *lines[1:]]), err=True)
    return code


def _is_cause(failure: BaseException, *, is_told: bool = False) -> bool:
    """Tell the others that this process fails; whether it is not for another's failure."""
    launching = sys.modules.get("fastvideo_lightning.strategies.launcher")
    return launching is None or launching.note_failure(failure, is_told=is_told)


def _open_closed_streams() -> None:
    """Have what a service or `2>&-` closed go nowhere.

    Its number would else be the next file's, which then gets what a library writes to stderr.
    Python's own stdin stays None: whoever asks for prompts there is told.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
        if name != "stdin" and getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _note_exit(code: int) -> None:
    """Tell what ends the other processes by what code this one does."""
    launching = sys.modules.get("fastvideo_lightning.strategies.launcher")
    if launching is not None:
        launching.note_exit(code)


def main() -> None:
    """Run the command and exit: 0, 1 (failed while running), 2 (wrong choice), 130 (Ctrl-C)."""
    # As Ctrl-C does, so that a half-made file goes before the process does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _open_closed_streams()
    show_own_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = run()
    _note_exit(code)
    sys.exit(code)
