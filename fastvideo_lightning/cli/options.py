"""The options of the command: their names, types, help and groups, and the file that may hold them.

An option's name is the Python name with hyphens, so that a page on one reads for the other.
"""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import click

from fastvideo_lightning.cli.option_table import (
    MODEL_ROWS,
    OTHER,
    PROMPT_ROWS,
    REPEATABLE,
    VIDEO_ROWS,
    WEIGHTS_ROWS,
)
from fastvideo_lightning.config import OffloadConfig, SamplingParams, spell_lists

COMMAND = "fastvideo-lightning"
FLAGS = {field.name: field.default for field in fields(OffloadConfig)}
SAMPLING = [field.name for field in fields(SamplingParams)]
DEFAULTS = {
    "model": "tiny-shapes",
    "output_path": "output/",
    "save_video": True,
    "quiet": False,
    "resume": True,
    "fail_fast": False,
    "allow_pickle": False,
    "num_gpus": 1,
    "accelerator": "auto",
    "dtype": "auto",
}


class WrongChoiceError(click.UsageError):
    """What the user passed cannot be; the message says what, what came and what to type.

    Args:
        message: In the words that one types.
        ctx: The command's.
        further: Lines to show behind the message: what else is wrong.
    """

    def __init__(
        self, message: str, ctx: click.Context | None = None, *, further: Sequence[str] = ()
    ) -> None:
        super().__init__(message, ctx)
        self.further = further


class GroupedOption(click.Option):
    """An option that stands under a heading of the help page.

    Its value is None where it was not given: what was not typed leaves room for the file's.
    """

    def __init__(
        self, name: str, *, group: str, kind: Any = str, text: str, multiple: bool = False
    ) -> None:
        stem = name.replace("_", "-")
        default = {**DEFAULTS, **FLAGS}.get(name)
        is_flag = isinstance(default, bool)
        if is_flag:
            text += f" [default: {'on' if default else 'off'}]"
        elif default is not None:
            text += f" [default: {default}]"
        declaration = f"--{stem}/--no-{stem}" if is_flag else f"--{stem}"
        super().__init__(
            [declaration, name],
            type=None if is_flag else kind,
            default=None,
            help=text,
            multiple=multiple,
            callback=lambda ctx, param, value: None if value == () else value,
        )
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its text; `--[no-]flag` for a flag, which is half as wide."""
        record = super().get_help_record(ctx)
        if record is None or not self.secondary_opts:
            return record
        return f"--[no-]{self.opts[0].removeprefix('--')}", record[1]


class StrictCommand(click.Command):
    """A command that drops nothing of what was typed: an option given twice is an error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, refusing an option that takes one value and was given several."""
        if not ctx.resilient_parsing:
            order = self.make_parser(ctx).parse_args(list(args))[2]
            for param in order:
                if not isinstance(param, click.Option) or param.multiple:
                    continue
                is_choice = not param.is_flag or param.secondary_opts
                if is_choice and order.count(param) > 1:
                    raise WrongChoiceError(_given_twice(param), ctx)
        return super().parse_args(ctx, args)


def _given_twice(param: click.Parameter) -> str:
    name = param.opts[0]
    if param.secondary_opts:
        name += f" (or {param.secondary_opts[0]})"
    how = "Keep one of the two."
    if param.name == "prompt":
        how = "Keep one of the two, or write one a line into a file: --prompts prompts.txt."
    return f"{name} is given twice. {how}"


class GroupedCommand(StrictCommand):
    """A command whose help page has a heading for each group of options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group, in the order of their declaration."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", OTHER), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=40)


def make_options() -> list[click.Parameter]:
    """Return the options of `generate`, in the order of the help page."""
    rows = [*PROMPT_ROWS, *MODEL_ROWS, *VIDEO_ROWS, *WEIGHTS_ROWS]
    return [
        GroupedOption(name, group=group, kind=kind, text=text, multiple=name in REPEATABLE)
        for name, group, kind, text in rows
    ]


_OTHERS = ("prompt", "prompts", "revision", "variant")
_NAMES = sorted({*FLAGS, *SAMPLING, *DEFAULTS, *_OTHERS}, key=len, reverse=True)
_ANY, _LONG = "|".join(_NAMES), "|".join(name for name in _NAMES if "_" in name)
_WITH_VALUE = re.compile(rf"\b({_ANY})=([^\s,;]*[^\s,;.:)])")
# A short name such as `model` is a plain word too: it is an option only where it opens a sentence.
# What stands in quotes is spelled as in the file that it is from.
_ALONE = re.compile(rf"^(?:{_ANY})\b|(?<!')\b(?:{_LONG})\b")


def in_command_words(message: str) -> str:
    """Rewrite Python spellings as what one types: `height=480` as `--height 480`."""

    def with_value(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        if value in ("True", "False"):
            return f"--{name}" if value == "True" else f"--no-{name}"
        return f"--{name} {value}"

    def option(name: str) -> str:
        return "--" + name.replace("_", "-")

    text = spell_lists(_WITH_VALUE.sub(with_value, message), _NAMES, option)
    return _ALONE.sub(lambda match: option(match[0]), text)
