"""What is said of an error: which are the user's to mend, and what to type instead.

Messages spell Python names as one types them.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import click

from fastvideo_lightning.cli.options import COMMAND, DEFAULTS, FLAGS, SAMPLING, WrongChoiceError
from fastvideo_lightning.config import spell_lists
from fastvideo_lightning.config.sampling import EXAMPLES

_OTHERS = ("base", "prompt", "prompts", "revision", "variant")
_NAMES = sorted({*FLAGS, *SAMPLING, *DEFAULTS, *_OTHERS}, key=len, reverse=True)
_ANY, _LONG = "|".join(_NAMES), "|".join(name for name in _NAMES if "_" in name)
_WITH_VALUE = re.compile(rf"\b({_ANY})=([^\s,;]*[^\s,;.:)])")
# A short name such as `model` is a plain word too: it is an option only where it opens a sentence.
# What stands in quotes is spelled as in the file that it is from.
_COMPONENT = re.compile(r"\bcomponent (?=\w+[=:])")
_ALONE = re.compile(rf"^(?:{_ANY})\b|(?<!')\b(?:{_LONG})\b")


def as_cli_options(message: str) -> str:
    """Rewrite Python spellings as what one types: `height=480` as `--height 480`."""

    def with_value(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        if value in ("True", "False"):
            return f"--{name}" if value == "True" else f"--no-{name}"
        return f"--{name} {value}"

    def option(name: str) -> str:
        return "--" + name.replace("_", "-")

    message = _COMPONENT.sub("--component ", message)
    text = spell_lists(_WITH_VALUE.sub(with_value, message), _NAMES, option)
    return _ALONE.sub(lambda match: option(match[0]), text)


@contextmanager
def usage_errors(*also: type[Exception]) -> Iterator[None]:
    """Mark errors before the work as the user's to mend: they end with exit code 2.

    What they say of Python names is put into the words that one types here.
    """
    kinds: list[type[Exception]] = [ValueError, TypeError, OSError, *also]
    try:
        yield
    except click.UsageError:
        raise
    except tuple(kinds) as error:
        first, *more = str(error).strip().splitlines() or [type(error).__name__]
        context = click.get_current_context(silent=True)
        if getattr(error, "is_of_file", False):
            raise WrongChoiceError(first, context, further=more) from error
        notes = [*map(as_cli_options, getattr(error, "__notes__", ()))]
        raise WrongChoiceError(as_cli_options(first), context, further=notes) from error


# Values as one types them, by option.
_TYPED = {
    "prompt": '"a red circle moves right"',
    "prompts": "prompts.txt",
    "gpu": '"RTX 4090"',
    "gpu_memory_budget": 12,
    "num_gpus": 1,
    "context_parallel": 2,
    "guidance_parallel": 2,
    "dit_resident_blocks": 10,
    "num_slots": 2,
    "port": 7860,
    "max_side": 832,
    "max_frames": 81,
    "max_steps": 50,
    "max_queue": 4,
    **EXAMPLES,
}


def explain(error: click.ClickException, group: click.Group, arguments: Sequence[str]) -> list[str]:
    """Return lines for an error of click: the first without its "Error: ".

    Args:
        error: What click raised.
        group: The command with all its subcommands.
        arguments: What was typed: some errors do not know of which command they are.
    """
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command if context is not None else None
    if command is None or command is group:
        typed = next((word for word in arguments if word in group.commands), None)
        command = group.commands[typed] if context is None and typed else command
    named = "generate" if command is None or command is group else command.name
    see_help = f"See {COMMAND} {named} --help."
    if isinstance(error, click.NoSuchOption):
        return _explain_unknown(error, group, see_help)
    hint = _what_to_type(error, command)
    return [*in_two_lines(error.format_message(), hint or see_help), *getattr(error, "further", ())]


def in_two_lines(text: str, otherwise: str) -> list[str]:
    """Split into what is wrong and what to type; `otherwise` is the second line where none is."""
    line, *_ = text.strip().splitlines() or [""]
    what, *suggestion = re.split(r"(?<=[.?!]) (?=[A-Z])", line, maxsplit=1)
    return [what, *(suggestion or [otherwise])]


def _explain_unknown(error: click.NoSuchOption, group: click.Group, see_help: str) -> list[str]:
    name = error.option_name
    params = group.commands["generate"].params
    of_generate = [opt for param in params for opt in (*param.opts, *param.secondary_opts)]
    if error.ctx is not None and error.ctx.command is group and name in of_generate:
        return [f"no such option: {name}", f"Say first what to do: {COMMAND} generate {name} ..."]
    near = _nearest_option(name, error)
    return [f"no such option: {name}", f"Did you mean {near}?" if near else see_help]


def _nearest_option(name: str, error: click.NoSuchOption) -> str | None:
    """Return the option that was meant: one that ends as `--steps` does, or looks most like it."""
    params = error.ctx.command.params if error.ctx is not None else []
    longer = [opt for param in params for opt in param.opts if opt.endswith(f"-{name[2:]}")]
    return next(iter([*longer, *(error.possibilities or ())]), None)


def _what_to_type(error: click.ClickException, command: click.Command | None) -> str | None:
    """A value that an option takes, where one was missing or of the wrong kind."""
    if "unexpected extra argument" in error.message and command and command.name == "generate":
        return f"A prompt stands in quotes, after its option: --prompt {_TYPED['prompt']}."
    name = getattr(error, "option_name", None)
    param = getattr(error, "param", None)
    if param is None and command is not None:
        param = next((each for each in command.params if name in each.opts), None)
    if param is None or not param.opts[0].startswith("--"):
        return None
    option, kind = param.opts[0], param.type
    if isinstance(kind, click.Choice):
        got = re.match(r"'([^']*)'", error.message)
        names = [str(choice).replace("_", "-") for choice in kind.choices]
        near = get_close_matches(got[1].lower(), names, 1, cutoff=0.5) if got else []
        return f"Did you mean {option} {near[0]}?" if near else f"Pass {option} {names[0]}."
    example = _TYPED.get(param.name or "")
    return f"Pass one such as {option} {example}." if example is not None else None
