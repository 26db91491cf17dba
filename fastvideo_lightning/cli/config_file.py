"""Options in a YAML file."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fastvideo_lightning.cli.options import (
    COMMAND,
    BudgetType,
    ComponentType,
    GroupedOption,
    MappingType,
    RepeatedKeyError,
    SwitchType,
    WrongChoiceError,
    read_yaml,
)
from fastvideo_lightning.config import nearest_name


def read_config_file(path: str, options: list[click.Parameter]) -> dict[str, Any]:
    """Read options from a YAML file; its keys are the options' names, with hyphens or underscores.

    Raises:
        WrongChoiceError: If the file cannot be read, or a key or a value is not an option's.
    """
    known = {str(option.name): option for option in options if isinstance(option, GroupedOption)}
    values: dict[str, Any] = {}
    for key, value in _read_yaml(path).items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = nearest_name(name, known)
            hint = f"See {COMMAND} generate --help."
            if near:
                hint = f"Did you mean {_spelled_like(key, near)}?"
            raise WrongChoiceError(f"{path}: no such option: {key}. {hint}")
        if name in values:
            raise WrongChoiceError(f"{path}: {key} is given twice. Keep one of the two.")
        with _naming(path, key):
            values[name] = None if value is None else _file_value(known[name], value)
    return {name: value for name, value in values.items() if value is not None}


def _spelled_like(key: object, name: str) -> str:
    """Return the name with hyphens, or as the key has it, with underscores."""
    return name if "_" in str(key) else name.replace("_", "-")


@contextmanager
def _naming(path: str, key: object) -> Iterator[None]:
    """Put the file and the key, as it is spelled there, before what is wrong with its value."""
    try:
        yield
    except click.BadParameter as error:
        between = " " if error.message.startswith("must be ") else ": "
        raise WrongChoiceError(f"{path}: {key}{between}{error.message}") from error


def _read_yaml(path: str) -> Mapping[Any, Any]:
    import yaml

    how = "Write one option a line, as in `num-frames: 17`."
    try:
        content = read_yaml(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise WrongChoiceError(
            f"--config {path} cannot be read: {reason}. Pass the path of a YAML file."
        ) from error
    except RepeatedKeyError as error:
        raise WrongChoiceError(f"{path}, {error} Keep one of the two.") from error
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise WrongChoiceError(f"{path}{place}: not YAML: {error.problem}. {how}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # `2030-99-99` is no date
        reason = "too deeply nested" if isinstance(error, RecursionError) else repr(error)
        raise WrongChoiceError(f"{path}: not YAML: {reason}. {how}") from error
    if not isinstance(content, Mapping | None):
        raise WrongChoiceError(
            f"{path} must hold option names and values, got a {type(content).__name__}. {how}"
        )
    return content or {}


def _file_value(option: GroupedOption, value: Any) -> Any:
    if isinstance(option.type, ComponentType) and isinstance(value, dict):
        value = [f"{name}={place}" for name, place in value.items()]
    if option.multiple:
        several = value if isinstance(value, list) else [value]
        return tuple(_one_value(option, one) for one in several)
    return _one_value(option, value)


def _one_value(option: GroupedOption, value: Any) -> Any:
    kinds: list[tuple[type[click.ParamType[Any]], tuple[type, ...], str]] = [
        (click.types.BoolParamType, (bool,), "true or false"),
        (click.types.IntParamType, (int,), "a whole number"),
        (click.types.FloatParamType, (int, float), "a number"),
        (SwitchType, (bool, str), "true, false or auto"),
        (BudgetType, (int, float, str), "a number of GiB, or auto"),
        (MappingType, (dict,), "names and values, as in `{strength: 0.7}`"),
    ]
    wanted: tuple[tuple[type, ...], str] = ((str,), "text; put it in quotes")
    for kind, types, words in kinds:
        if isinstance(option.type, kind):
            wanted = types, words
    is_stray_bool = isinstance(value, bool) and bool not in wanted[0]
    if is_stray_bool or not isinstance(value, wanted[0]):
        raise click.BadParameter(f"must be {wanted[1]}, got {value!r}.")
    return option.type.convert(value, option, None)
