"""Which pipelines the installed diffusers has, told by what their calls return."""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from torch import nn

from fastvideo_lightning.modules.pipelines import blocks_of, is_modular
from fastvideo_lightning.modules.signature import CallSignature

VIDEO_FIELDS = ("frames", "video", "videos")
IMAGE_FIELDS = ("images", "image")

# Pipelines that cannot run with the installed libraries, and why.
UNUSABLE = {
    "EasyAnimateControlPipeline": (
        "diffusers calls its own encode_prompt with text_encoder_index, which it does not take"
    ),
}


def find_video_pipelines() -> dict[str, Any]:
    """Return the pipeline classes whose calls return a video, by name in alphabetical order."""
    return {name: kind for name, kind in _find_pipelines() if makes_video(kind)}


def find_image_pipelines() -> dict[str, Any]:
    """Return the pipeline classes whose calls return pictures, by name in alphabetical order."""
    return {
        name: kind
        for name, kind in _find_pipelines()
        if returns(kind, IMAGE_FIELDS) and not makes_video(kind)
    }


def makes_video(pipeline_class: Any) -> bool:
    """Whether the call of a pipeline makes a video.

    Its output has frames; or it has pictures, and the call takes how many frames they shall be.
    """
    if returns(pipeline_class, VIDEO_FIELDS):
        return True
    counts = CallSignature(pipeline_class).argument_for("num_frames") is not None
    return counts and returns(pipeline_class, IMAGE_FIELDS)


def returns(pipeline_class: Any, names: tuple[str, ...]) -> bool:
    """Whether the call of a pipeline makes an output that has one of the fields."""
    if is_modular(pipeline_class):
        return any(output.name in names for output in blocks_of(pipeline_class).outputs)
    return any(
        field.name in names for kind in _outputs_of(pipeline_class) for field in fields(kind)
    )


def check_makes_frames(pipeline: Any) -> None:
    """Raise ValueError for a pipeline, or its class, that makes neither frames nor pictures.

    What its call returns is read off its code; where that tells of no output, the call itself will.
    """
    if is_modular(pipeline):
        made = [output.name for output in blocks_of(pipeline).outputs]
    else:
        made = [field.name for kind in _outputs_of(pipeline) for field in fields(kind)]
    if made and not {*VIDEO_FIELDS, *IMAGE_FIELDS} & set(made):
        raise no_frames(pipeline, made)


def no_frames(pipeline: Any, made: Iterable[str]) -> ValueError:
    """Return the error that says what a pipeline makes in place of frames."""
    kind = pipeline if inspect.isclass(pipeline) else type(pipeline)
    return ValueError(
        f"{kind.__name__} makes neither frames nor pictures: it returns "
        f"{', '.join(made) or 'nothing that has a name'}. Call the pipeline itself for these, and "
        "pass one here that makes a video or a picture."
    )


def declared_models(pipeline_class: Any) -> dict[str, list[Any]]:
    """Return the model classes that each component of a pipeline may have, by component."""
    found = {}
    if is_modular(pipeline_class):
        hints = {
            part.name: part.type_hint for part in blocks_of(pipeline_class).expected_components
        }
    else:
        hints = get_type_hints(pipeline_class.__init__)
    for name, hint in hints.items():
        kinds = get_args(hint) or (hint,)
        models = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, nn.Module)]
        if models:
            found[name] = models
    return found


def _find_pipelines() -> Iterator[tuple[str, Any]]:
    import diffusers

    for name in sorted(diffusers.__all__ if hasattr(diffusers, "__all__") else dir(diffusers)):
        if not name.endswith("Pipeline"):
            continue
        kind = getattr(diffusers, name)
        blocks = is_modular(kind) and kind.default_blocks_name is not None
        if blocks or issubclass(kind, diffusers.DiffusionPipeline):
            yield name, kind


def _outputs_of(pipeline_class: Any) -> Iterator[Any]:
    """Yield the output classes that a pipeline's call returns by its annotation, or mentions.

    Few pipelines annotate their call, but nearly all make their output there by its class.
    """
    from diffusers.utils.outputs import BaseOutput

    call = inspect.unwrap(pipeline_class.__call__)
    code = getattr(call, "__code__", None)
    if code is None:
        return
    annotated = re.findall(r"\w+", str(inspect.get_annotations(call).get("return")))
    for name in (*code.co_names, *annotated):
        value = call.__globals__.get(name)
        if inspect.isclass(value) and issubclass(value, BaseOutput):
            yield value
