"""The options of the command: types, names, help, defaults and groups.

An option's name is the Python name with hyphens, so that a page on one reads for the other.
"""

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import click

from fastvideo_lightning.config import (
    CACHES,
    HOST_MEMORY,
    MAX_FPS,
    ON_OOM,
    SHARD_TRANSPORT,
    WEIGHT_COMPRESSION,
    LoraChoice,
    OffloadConfig,
    SamplingParams,
)


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


class ComponentType(click.ParamType[tuple[str, str]]):
    """A file or folder in the place of a component: `NAME=PATH`."""

    name = "name=path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the name and the path."""
        if isinstance(value, tuple):
            return value
        name, equals, path = str(value).partition("=")
        if not (name.strip() and equals and path.strip()):
            self.fail(f"must look like transformer=wan.safetensors, got {value!r}.", param, ctx)
        return name.strip(), os.path.expanduser(path.strip())


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


class SwitchType(click.ParamType[bool | str]):
    """On, off, or `auto`; on where the option is typed without a value."""

    name = "auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool | str:
        """Return True, False or `auto`."""
        known: dict[Any, bool | str] = {"auto": "auto", "on": True, "off": False}
        if isinstance(value, bool):
            return value
        if value not in known:
            self.fail(f"{value!r} is none of auto, on and off.", param, ctx)
        return known[value]


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


PROMPT, MODEL, VIDEO, WEIGHTS, OTHER = (
    "Prompt and output",
    "Model and machine",
    "Video (default: what suits the model)",
    "Where weights live",
    "Other",
)

Row = tuple[str, str, Any, str]

PROMPT_ROWS: list[Row] = [
    ("prompt", PROMPT, str, "What the video shows."),
    ("prompts", PROMPT, PathType(), "File with many: .txt, .jsonl, .csv, or - for stdin."),
    ("resume", PROMPT, bool, "With --prompts, leave out what the folder has already."),
    ("fail_fast", PROMPT, bool, "With --prompts, end with the first that fails."),
    ("shard", PROMPT, str, "With --prompts, one part of them alone, such as 3/8."),
    ("seeds", PROMPT, int, "Videos of each prompt, with its seed and those that follow."),
    ("report", PROMPT, PathType(), "File to show the run in: .html, .png or .json."),
    ("quiet", PROMPT, bool, "Say nothing but paths, warnings and errors."),
    ("negative_prompt", PROMPT, str, "What it should not show."),
    ("image_path", PROMPT, PathType(), "First frame, for models that take an image."),
    ("last_image_path", PROMPT, PathType(), "Last frame, for models that take two."),
    ("video_path", PROMPT, PathType(), "Video to start from, for models that take one."),
    ("output_path", PROMPT, PathType(), "Folder of the video; the prompt names the file."),
    ("save_video", PROMPT, bool, "Write the video."),
]

MODEL_ROWS: list[Row] = [
    (
        "model",
        MODEL,
        str,
        "Folder of a diffusers pipeline, hub id, tiny-shapes, or a .safetensors or .gguf file.",
    ),
    ("base", MODEL, PathType(), "Folder or hub id with the rest, where --model is a file."),
    (
        "component",
        MODEL,
        ComponentType(),
        "File or folder in the place of a component; may be given several times.",
    ),
    ("revision", MODEL, str, "Branch, tag or commit on the hub."),
    ("allow_pickle", MODEL, bool, "Load pickled weights, which can run code, if need be."),
    ("variant", MODEL, str, "Variant of the weight files, such as fp16."),
    (
        "lora",
        MODEL,
        LoraType(),
        "LoRA file, folder or hub id; may be given several times. Of two experts, add @transformer "
        "or @transformer_2.",
    ),
    (
        "dtype",
        MODEL,
        click.Choice(["auto", "fp32", "bf16", "fp16", "fp8", "int8"]),
        "auto: fp32 on a CPU, on a GPU bf16 (Wan's VAE: fp32); fp8, int8: the denoiser alone.",
    ),
    (
        "accelerator",
        MODEL,
        click.Choice(["auto", "cpu", "gpu", "cuda", "mps"]),
        "Where to compute.",
    ),
    ("num_gpus", MODEL, click.IntRange(min=1), "Processes, one for each GPU."),
]

VIDEO_ROWS: list[Row] = [
    ("height", VIDEO, int, "Pixels."),
    ("width", VIDEO, int, "Pixels."),
    ("num_frames", VIDEO, int, "Frames."),
    ("fps", VIDEO, int, f"Frames per second, 1 to {MAX_FPS}."),
    ("num_inference_steps", VIDEO, int, "Denoising steps: more take longer and show more."),
    ("guidance_scale", VIDEO, float, "How closely to follow the prompt."),
    ("guidance_scale_2", VIDEO, float, "The same for the second expert of two."),
    ("scheduler", VIDEO, str, "Another of diffusers' schedulers, by the name of its class."),
    ("flow_shift", VIDEO, float, "Shift of the noise schedule."),
    ("max_sequence_length", VIDEO, int, "Tokens of the prompt that are read."),
    (
        "pipeline_arguments",
        VIDEO,
        MappingType(),
        "Further arguments of diffusers' call; a file's path stands for its content.",
    ),
    ("seed", VIDEO, int, f"Of the noise. [default: {SamplingParams.seed}]"),
]

_FLAG_TEXTS = {
    "dit_layerwise_offload": "Stream the denoiser's blocks through the GPU.",
    "use_fsdp_inference": "Shard the denoiser over the GPUs with FSDP2.",
    "dit_cpu_offload": "With FSDP, keep the shards in host memory.",
    "text_encoder_cpu_offload": "Compute the text encoder on the CPU.",
    "image_encoder_cpu_offload": "Image encoder on the GPU only during its call.",
    "vae_cpu_offload": "VAE on the GPU only during its call.",
    "pin_cpu_memory": "Pin host memory: faster transfers.",
    "text_encoder_layerwise_offload": "Stream the text encoder through the GPU instead.",
    "dit_resident_blocks": "How many of the streamed blocks stay on the GPU.",
    "num_slots": "Streamed blocks that the GPU has room for at the same time.",
    "compile": "Compile the denoiser's blocks: slower to start, faster steps.",
    "cuda_graphs": "Have the GPU repeat steps by itself: faster small steps.",
    "pair_guidance": "With guidance, copy each block once for all calls of a step.",
    "weight_compression": "lossless: streamed bf16 blocks in 0.7 of their bytes, the same bits.",
    "vae_tiling": "Decode in tiles: less memory, slightly other pixels.",
    "vae_slicing": "Decode the videos of a batch one by one.",
    "attention_backend": "One that diffusers knows, such as flash or sage.",
    "cache": "Skip computing that changes little from step to step: other pixels.",
    "host_memory": "Of the host copies; mapped: the checkpoint's file itself.",
    "shard_transport": "On several GPUs, how blocks stream: in parts, or each all.",
    "context_parallel": "GPUs that make each video together.",
    "guidance_parallel": "With guidance, 2 GPUs make one call of each step each.",
    "gpu_memory_budget": "GiB that the GPU may reserve, or auto: chooses the flags left out.",
    "host_memory_budget": "GiB of host memory to hold for weights, or auto; the rest is read.",
    "on_oom": "Out of GPU memory: raise, or replan with less on the GPU and try again.",
}
_FLAG_TYPES: dict[str, Any] = {
    "shard_transport": click.Choice(SHARD_TRANSPORT),
    "host_memory": click.Choice(HOST_MEMORY),
    "weight_compression": click.Choice(WEIGHT_COMPRESSION),
    "cache": click.Choice(CACHES),
    "pair_guidance": SwitchType(),
    "attention_backend": str,
    "dit_resident_blocks": click.IntRange(min=0),
    "num_slots": click.IntRange(min=1),
    "context_parallel": click.IntRange(min=1),
    "guidance_parallel": click.IntRange(min=1, max=2),
    "gpu_memory_budget": BudgetType(),
    "host_memory_budget": BudgetType(),
    "on_oom": click.Choice(ON_OOM),
}
WEIGHTS_ROWS: list[Row] = [
    (flag.name, WEIGHTS, _FLAG_TYPES.get(flag.name, bool), _FLAG_TEXTS[flag.name])
    for flag in fields(OffloadConfig)
]

REPEATABLE = {"lora", "component"}


def join_components(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return files and folders by the components whose place they take.

    Raises:
        WrongChoiceError: If a component is given twice.
    """
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise WrongChoiceError(f"--component {name} is given twice. Keep one of the two.")
    return dict(pairs)


def read_components(given: dict[str, Any]) -> None:
    """Have what was given as components, in place, as Python takes them: by their names."""
    if "component" in given:
        given["component"] = join_components(given["component"])


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
    "shard": "1/1",
    "seeds": 1,
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
        is_switch = isinstance(kind, SwitchType)
        further: dict[str, Any] = {"is_flag": False, "flag_value": "on"} if is_switch else {}
        is_flag = isinstance(default, bool) and not is_switch
        if isinstance(default, bool):
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
            **further,
            callback=lambda ctx, param, value: None if value == () else value,
        )
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its text; `--[no-]flag` for a flag, which is half as wide."""
        record = super().get_help_record(ctx)
        if record is not None and isinstance(self.type, SwitchType):
            return f"--[no-]{self.opts[0].removeprefix('--')} [auto]", record[1]
        if record is None or not self.secondary_opts:
            return record
        return f"--[no-]{self.opts[0].removeprefix('--')}", record[1]


class StrictCommand(click.Command):
    """A command that drops nothing of what was typed: an option given twice is an error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, refusing an option that takes one value and was given several."""
        switches = [o for o in self.params if isinstance(o.type, SwitchType)]
        off = {o.opts[0].replace("--", "--no-", 1): f"{o.opts[0]}=off" for o in switches}
        args = [off.get(arg.replace("_", "-"), arg) for arg in args]
        if not ctx.resilient_parsing:
            order = self.make_parser(ctx).parse_args(list(args))[2]
            for param in order:
                if not isinstance(param, click.Option) or param.multiple:
                    continue
                is_choice = not getattr(param, "is_flag", False) or param.secondary_opts
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
