"""The pipelines of the installed diffusers: which module calls each, what streams of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from textwrap import TextWrapper
from typing import Any

import torch

from fastvideo_lightning.modules import find_family
from fastvideo_lightning.modules.catalog import UNUSABLE, declared_models, find_video_pipelines
from fastvideo_lightning.modules.generic import GenericModule
from fastvideo_lightning.modules.roles import Role, Roles, role_of, sort_roles
from fastvideo_lightning.offload.blocks import streamed_share

# A class that has no size of its own: that of the public checkpoint.
_SIZES: dict[str, dict[str, Any]] = {
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "out_channels": 16, "patch_size": 2},
    "LatteTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "attention_head_dim": 72,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "sample_size": 64,
        "patch_size": 2,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "norm_elementwise_affine": False,
    },
}

HEADER = (
    "pipeline",
    "module",
    "denoisers: streamed share",
    "text encoders",
    "image encoders",
    "VAEs and what else runs outside of the steps",
)


@dataclass(frozen=True)
class Entry:
    """One pipeline.

    Attributes:
        name: Its class.
        family: Whether a family knows its defaults; else it is called by its signature alone.
        roles: Its components by role, as its constructor declares them.
        shares: The part of each denoiser's bytes that streams, at the size of the class's defaults.
        reason: Why it cannot run with the installed libraries, or None.
    """

    name: str
    family: bool
    roles: Roles
    shares: dict[str, float]
    reason: str | None = None


def list_entries(told: Callable[[str], None] = lambda name: None) -> list[Entry]:
    """Return every video pipeline, by name; `told` hears of each before it is looked at.

    Models are built on meta: no weight is made.
    """
    entries = []
    for name, kind in find_video_pipelines().items():
        told(name)
        models = declared_models(kind)
        shares = {
            component: min((s for s in (share_of(k) for k in kinds) if s), default=0.0)
            for component, kinds in models.items()
            if role_of(kinds[0]) is Role.DENOISER
        }
        roles = sort_roles({component: kinds[0] for component, kinds in models.items()})
        is_family = find_family(name) is not GenericModule
        entries.append(Entry(name, is_family, roles, shares, UNUSABLE.get(name)))
    return entries


@cache
def share_of(model_class: Any) -> float | None:
    """Return the part of a model's bytes that streams; None where a class has no size."""
    config = _SIZES.get(model_class.__name__, {})
    try:
        with torch.device("meta"):
            model = model_class(**config)
    except TypeError:  # a list of models, such as several ControlNets: each is one of its own
        return None
    return streamed_share(model)


def as_markdown(entries: list[Entry]) -> str:
    """Return the table as the documentation has it."""
    lines = [[*HEADER], ["---"] * len(HEADER), *(as_cells(entry) for entry in entries)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def as_lines(entries: list[Entry], width: int) -> list[str]:
    """Return the table for a terminal: a pipeline and its module, and below them the other cells.

    Lines are at most `width` characters, and broken between words alone.
    """
    lines = []
    for name, module, *rest in (HEADER, *map(as_cells, entries)):
        for text, indent in (f"{name} ({module})", ""), (" | ".join(t or "-" for t in rest), "  "):
            wrapped = TextWrapper(
                width,
                initial_indent=indent,
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines += wrapped.wrap(text)
    return lines


def as_cells(entry: Entry) -> list[str]:
    """Return the cells of a row, as text."""
    module = "family" if entry.family else "generic"
    shares = ", ".join(f"{name}: {share:.1%}" for name, share in entry.shares.items())
    return [
        entry.name,
        module if entry.reason is None else f"cannot run: {entry.reason}",
        shares or "none",
        *(
            ", ".join(names)
            for names in (entry.roles.text_encoders, entry.roles.image_encoders, entry.roles.vaes)
        ),
    ]
