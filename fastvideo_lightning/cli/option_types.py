"""Types of options that click does not have."""

import os
from typing import Any

import click

from fastvideo_lightning.config import HOST_MEMORY, LoraChoice


class RepeatedKeyError(ValueError):
    """A key stands twice in a mapping, of which YAML's loader would drop the first."""


def read_yaml(text: str) -> Any:
    """Read plain YAML as `yaml.safe_load` does, but drop no key.

    Raises:
        RepeatedKeyError: If a key stands twice in a mapping; names it and its line.
        yaml.YAMLError: If it is no YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key, _ in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else None
                if name in seen and key.tag != "tag:yaml.org,2002:merge":
                    line = key.start_mark.line + 1
                    raise RepeatedKeyError(f"line {line}: {name} is given twice.")
                seen.add(name or object())
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)  # noqa: S506  # a SafeLoader


class HostMemoryType(click.ParamType[str | float]):
    """Where host copies wait, or for a plan how many GiB of memory the host has."""

    name = "kind or GiB"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | float:
        """Read a number where it is one, and one of the kinds otherwise."""
        try:
            size_gib = float(value)
        except ValueError:
            return click.Choice(HOST_MEMORY).convert(value, param, ctx)
        if size_gib <= 0:
            self.fail(f"{value} GiB are no memory. Pass a number such as 32.", param, ctx)
        return size_gib


class PathType(click.ParamType[str]):
    """A path, whose `~` is the home also where no shell has read it."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path as text."""
        return os.path.expanduser(str(value))


class LoraType(click.ParamType[LoraChoice]):
    """A LoRA on the command line: `PATH`, `PATH:WEIGHT` or `PATH:WEIGHT@DENOISER`."""

    name = "path[:weight][@denoiser]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> LoraChoice:
        """Read one, checking that it is there."""
        try:
            return LoraChoice.parse(str(value))
        except (ValueError, OSError) as error:
            raise click.BadParameter(str(error), ctx=ctx, param=param) from error


class BudgetType(click.ParamType[float | str]):
    """A number of GiB, or `auto`."""

    name = "gib"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Return the number, or `auto`."""
        if value == "auto":
            return "auto"
        try:
            return float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a number of GiB nor auto.", param, ctx)


class MappingType(click.ParamType[Any]):
    """Names and values in YAML, such as `{strength: 0.7, mask: mask.mp4}`."""

    name = "{name: value, ...}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Read the text; what is a mapping already passes."""
        import yaml

        try:
            mapping = read_yaml(value) if isinstance(value, str) else value
        except RepeatedKeyError as error:
            self.fail(f"{error} Keep one of the two.", param, ctx)
        except yaml.YAMLError:
            mapping = None
        if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping):
            self.fail(f"must look like '{{strength: 0.7, mask: mask.mp4}}', got {value!r}.", param)
        return mapping
