"""Classifier-free guidance: whether a pipeline's call computes the negative prompt at all."""

import copy
from typing import Any

from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.modules.pipelines import GUIDERS, Pipeline
from fastvideo_lightning.modules.signature import CallSignature

# The models that take the guidance scale as an input have another for real guidance.
_TRUE_SCALE = "true_cfg_scale"


def is_guided(pipeline: Pipeline, params: SamplingParams) -> bool:
    """Whether the negative prompt counts; also True where a pipeline does not tell.

    Args:
        pipeline: Of the model.
        params: With all defaults.
    """
    scale = _scale_of(pipeline, params)
    if scale is None:
        return True
    guider: Any = getattr(pipeline, GUIDERS["guidance_scale"], None)
    if guider is not None:
        conditions: int = guider.new(guidance_scale=scale).num_conditions
        return conditions > 1
    if CallSignature(pipeline).takes(_TRUE_SCALE) or not _tells(pipeline):
        return scale > 1
    asked = copy.copy(pipeline)
    asked._guidance_scale = scale
    try:
        return bool(asked.do_classifier_free_guidance)
    except AttributeError:  # of what only a running call has
        return True


def guidance_of(pipeline: Pipeline, params: SamplingParams) -> str:
    """Return the setting that is the strength of guidance, with its value, as one types it."""
    if CallSignature(pipeline).takes(_TRUE_SCALE):
        return f"pipeline_arguments={{{_TRUE_SCALE!r}: {_scale_of(pipeline, params)}}}"
    return f"guidance_scale={_scale_of(pipeline, params)}"


def _scale_of(pipeline: Pipeline, params: SamplingParams) -> float | None:
    signature = CallSignature(pipeline)
    if signature.takes(_TRUE_SCALE):
        given = (params.pipeline_arguments or {}).get(_TRUE_SCALE)
        scale = signature.default_of(_TRUE_SCALE) if given is None else given
    else:
        scale = params.guidance_scale
    return float(scale) if isinstance(scale, int | float) else None


def _tells(pipeline: Pipeline) -> bool:
    return hasattr(type(pipeline), "do_classifier_free_guidance")
