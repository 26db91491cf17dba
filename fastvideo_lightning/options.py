"""The options of the command: their names, types, help and groups, and the file that may hold them.

An option's name is the Python name with hyphens, so that a page on one reads for the other.
"""

import re
from dataclasses import fields
from typing import Any

import click

from fastvideo_lightning.config import (
    CACHES,
    HOST_MEMORY,
    MAX_FPS,
    ON_OOM,
    SHARD_TRANSPORT,
    OffloadConfig,
    SamplingParams,
)
from fastvideo_lightning.option_types import BudgetType, LoraType

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
PROMPT, MODEL, VIDEO, WEIGHTS, OTHER = (
    "Prompt and output",
    "Model and machine",
    "Video (default: what suits the model)",
    "Where weights live",
    "Other",
)


class WrongChoiceError(click.UsageError):
    """What the user passed cannot be; the message says what, what came and what to type."""


class MappingType(click.ParamType[Any]):
    """Names and values in YAML, such as `{strength: 0.7, mask: mask.mp4}`."""

    name = "{name: value, ...}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Read the text; what is a mapping already passes."""
        import yaml

        try:
            mapping = yaml.safe_load(value) if isinstance(value, str) else value
        except yaml.YAMLError:
            mapping = None
        if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping):
            self.fail(f"must look like '{{strength: 0.7, mask: mask.mp4}}', got {value!r}.", param)
        return mapping


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


class GroupedCommand(click.Command):
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
    accelerators = click.Choice(["auto", "cpu", "gpu", "cuda", "mps"])
    dtypes = click.Choice(["auto", "fp32", "bf16", "fp16", "fp8", "int8"])
    rows: list[tuple[str, str, Any, str]] = [
        ("prompt", PROMPT, str, "What the video shows."),
        ("prompts", PROMPT, str, "File with many: .txt, .jsonl, .csv, or - for stdin."),
        ("resume", PROMPT, bool, "With --prompts, leave out what the folder has already."),
        ("fail_fast", PROMPT, bool, "With --prompts, end with the first that fails."),
        ("report", PROMPT, str, "File to show the run in: .html, .png or .json."),
        ("quiet", PROMPT, bool, "Say nothing but paths, warnings and errors."),
        ("negative_prompt", PROMPT, str, "What it should not show."),
        ("image_path", PROMPT, str, "First frame, for models that take an image."),
        ("last_image_path", PROMPT, str, "Last frame, for models that take two."),
        ("video_path", PROMPT, str, "Video to start from, for models that take one."),
        ("output_path", PROMPT, str, "Folder of the video; the prompt names the file."),
        ("save_video", PROMPT, bool, "Write the video."),
        ("model", MODEL, str, "Folder of a diffusers pipeline, hub id, or tiny-shapes."),
        ("revision", MODEL, str, "Branch, tag or commit on the hub."),
        ("allow_pickle", MODEL, bool, "Load pickled weights, which can run code, if need be."),
        ("variant", MODEL, str, "Variant of the weight files, such as fp16."),
        ("lora", MODEL, LoraType(), "LoRA file, folder or hub id; may be given several times."),
        (
            "dtype",
            MODEL,
            dtypes,
            "auto: fp32 on a CPU, on a GPU bf16 (Wan's VAE: fp32); fp8, int8: the denoiser alone.",
        ),
        ("accelerator", MODEL, accelerators, "Where to compute."),
        ("num_gpus", MODEL, click.IntRange(min=1), "Processes, one for each GPU."),
        ("height", VIDEO, int, "Pixels."),
        ("width", VIDEO, int, "Pixels."),
        ("num_frames", VIDEO, int, "Frames."),
        ("fps", VIDEO, int, f"Frames per second, 1 to {MAX_FPS}."),
        ("num_inference_steps", VIDEO, int, "Denoising steps: more take longer and show more."),
        ("guidance_scale", VIDEO, float, "How closely to follow the prompt."),
        ("guidance_scale_2", VIDEO, float, "The same for the second expert of two."),
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
    texts = {
        "dit_layerwise_offload": "Stream the denoiser's blocks through the GPU.",
        "use_fsdp_inference": "Shard the denoiser over the GPUs with FSDP2.",
        "dit_cpu_offload": "With FSDP, keep the shards in host memory.",
        "text_encoder_cpu_offload": "Compute the text encoder on the CPU.",
        "image_encoder_cpu_offload": "Image encoder on the GPU only during its call.",
        "vae_cpu_offload": "VAE on the GPU only during its call.",
        "pin_cpu_memory": "Pin host memory: faster transfers.",
        "text_encoder_layerwise_offload": "Stream the text encoder through the GPU instead.",
        "dit_resident_blocks": "So many of the streamed blocks stay on the GPU.",
        "compile": "Compile the denoiser's blocks: slower to start, faster steps.",
        "cuda_graphs": "Have the GPU repeat steps by itself: faster small steps.",
        "vae_tiling": "Decode in tiles: less memory, slightly other pixels.",
        "vae_slicing": "Decode the videos of a batch one by one.",
        "attention_backend": "One that diffusers knows, such as flash or sage.",
        "cache": "Skip computing that changes little from step to step: other pixels.",
        "host_memory": "Of the host copies; mapped: the checkpoint's file itself.",
        "shard_transport": "On several GPUs, how blocks stream: in parts, or each all.",
        "context_parallel": "GPUs that make each video together.",
        "gpu_memory_budget": "GiB that the GPU may reserve, or auto: chooses the flags left out.",
        "on_oom": "Out of GPU memory: raise, or replan with less on the GPU and try again.",
    }
    kinds = {
        "shard_transport": click.Choice(SHARD_TRANSPORT),
        "host_memory": click.Choice(HOST_MEMORY),
        "cache": click.Choice(CACHES),
        "attention_backend": str,
        "dit_resident_blocks": click.IntRange(min=0),
        "context_parallel": click.IntRange(min=1),
        "gpu_memory_budget": BudgetType(),
        "on_oom": click.Choice(ON_OOM),
    }
    rows += [(flag, WEIGHTS, kinds.get(flag, bool), texts[flag]) for flag in FLAGS]
    repeatable = {"lora"}
    return [
        GroupedOption(name, group=group, kind=kind, text=text, multiple=name in repeatable)
        for name, group, kind, text in rows
    ]


_NAMES = sorted({*FLAGS, *SAMPLING, *DEFAULTS, "prompt", "prompts"}, key=len, reverse=True)
_ANY, _LONG = "|".join(_NAMES), "|".join(name for name in _NAMES if "_" in name)
_WITH_VALUE = re.compile(rf"\b({_ANY})=([^\s,;]*[^\s,;.:)])")
# A short name such as `model` is a plain word too: it is an option only where it opens a sentence.
_ALONE = re.compile(rf"^(?:{_ANY})\b|\b(?:{_LONG})\b")


def in_command_words(message: str) -> str:
    """Rewrite Python spellings as what one types: `height=480` as `--height 480`."""

    def with_value(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        if value in ("True", "False"):
            return f"--{name}" if value == "True" else f"--no-{name}"
        return f"--{name} {value}"

    def alone(match: re.Match[str]) -> str:
        return "--" + match[0].replace("_", "-")

    return _ALONE.sub(alone, _WITH_VALUE.sub(with_value, message))
