"""The gallery of a batch: one HTML file that shows a folder's videos and how each was made."""

import base64
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment

from fastvideo_lightning.batch.gallery_page import PAGE
from fastvideo_lightning.batch.manifest import DONE, MANIFEST, Entry, Manifest
from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.output.files import whole_or_nothing
from fastvideo_lightning.output.thumbnails import make_thumbnail

GALLERY = "gallery.html"
_SAMPLING = [each.name for each in fields(SamplingParams) if each.name != "seed"]
_FLAGS = [each.name for each in fields(OffloadConfig)]
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Gallery:
    """A gallery that was written.

    Attributes:
        path: The page.
        num_videos: Videos that it shows.
        num_failed: Prompts that failed and whose video was not made since.
        num_gone: Videos of the manifest whose files are no longer there.
    """

    path: Path
    num_videos: int
    num_failed: int
    num_gone: int


class _Card(NamedTuple):
    """A video as the page shows it."""

    entry: Entry
    address: str
    thumbnail: str
    line: str
    settings: Mapping[str, object]
    command: str
    adapters: str


def write_gallery(folder: Path) -> Gallery:
    """Write `gallery.html` into the folder of a batch, beside its videos.

    The page needs nothing but the videos: pictures of them are in it. It is what the manifest says
    now; write it again after the next run.

    Raises:
        FileNotFoundError: If no batch was made in the folder.
        OSError: If the manifest cannot be read or the page not be written.
    """
    manifest = Manifest(folder)
    if not manifest.path.is_file():
        raise FileNotFoundError(
            f"There is no {MANIFEST} in {str(folder)!r}. Pass the folder of a batch, the "
            "--output-path of generate --prompts."
        )
    entries = manifest.read()
    last = {entry.file: entry for entry in entries if entry.status == DONE and entry.file}
    made = {entry.request for entry in last.values()}
    failed = {e.request: e for e in entries if e.status != DONE and e.request not in made}
    shown = [entry for entry in last.values() if _is_there(folder, str(entry.file))]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    path = folder / GALLERY
    with whole_or_nothing(path) as part, part.open("w", encoding="utf-8") as file:
        # One card after the other, so that a thousand pictures are not held at the same time.
        cards = (_make_card(folder, entry) for entry in shown)
        file.writelines(
            page.generate(cards=cards, failed=failed.values(), total=len(shown), name=_name(folder))
        )
    return Gallery(path, len(shown), len(failed), len(last) - len(shown))


def typed_command(entry: Entry, folder: Path) -> str:
    """Return what to type to make a video of a manifest again, on a POSIX shell.

    Adapters and parts from other files are not in it: the manifest has their names and contents,
    not where they lay.
    """
    model, _, revision = entry.model.partition("@")
    if Path(entry.model).is_absolute():
        model, revision = entry.model, ""
    options: dict[str, Any] = {"model": model, "revision": revision, "prompt": entry.prompt}
    options |= {name: entry.parameters.get(name) for name in (*_SAMPLING, *_FLAGS)}
    options |= {name: value for name, value in entry.settings.items() if name in _FLAGS}
    dtypes = set(entry.parameters.get("dtypes", {}).values())
    if len(dtypes) == 1:  # otherwise they are what the model has by itself
        options["dtype"] = _DTYPES.get(str(*dtypes))
    defaults = {each.name: each.default for each in fields(OffloadConfig)}
    words = ["fastvideo-lightning", "generate"]
    for name, value in {**options, "seed": entry.seed, "output_path": folder}.items():
        if value not in (None, "") and value != defaults.get(name, object()):
            words += _option(name.replace("_", "-"), value)
    return shlex.join(words)


def _option(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _is_there(folder: Path, name: str) -> bool:
    """Whether a name is that of a file in the folder itself, and not of one elsewhere."""
    path = folder / name
    return name == path.name and path.is_file() and not path.is_symlink()


def _name(folder: Path) -> str:
    return folder.resolve().name or str(folder)


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _make_card(folder: Path, entry: Entry) -> _Card:
    picture = make_thumbnail(folder / str(entry.file))
    had = entry.parameters
    sides = f"{had['width']}x{had['height']}" if {"width", "height"} <= had.keys() else ""
    frames = f"{had['num_frames']} frames" if "num_frames" in had else ""
    steps = f"{had['num_inference_steps']} steps" if "num_inference_steps" in had else ""
    loras = had.get("loras") or {}
    return _Card(
        entry=entry,
        address=f"./{quote(str(entry.file))}",
        thumbnail="" if picture is None else base64.b64encode(picture).decode(),
        line=" · ".join(filter(None, (f"seed {entry.seed}", sides, frames, steps))),
        settings={
            "model": entry.model,
            **{name: value for name, value in had.items() if value is not None},
            **entry.settings,
            **entry.time,
            **{name: value for name, value in entry.memory.items() if value is not None},
            "dtypes": _listed(had.get("dtypes", {})),
            "versions": _listed(entry.versions),
        },
        command=typed_command(entry, folder),
        adapters=", ".join(f"{name} ({weight})" for name, weight in loras.items()),
    )
