"""Modular pipelines of diffusers: what their blocks take and make, as other pipelines say it."""

import inspect
from collections.abc import Mapping
from typing import Any

# A pipeline of diffusers or its class, modular or not.
PipelineOrClass = Any


def is_modular(pipeline: PipelineOrClass) -> bool:
    """Whether a pipeline is put together from blocks."""
    kind = pipeline if inspect.isclass(pipeline) else type(pipeline)
    return any("default_blocks_name" in vars(base) for base in kind.__mro__)


def blocks_of(pipeline: PipelineOrClass) -> Any:
    """Return the blocks of a modular pipeline; those that its class has by default."""
    made: Any = pipeline() if inspect.isclass(pipeline) else pipeline
    return made.blocks


def call_parameters(pipeline: PipelineOrClass) -> Mapping[str, inspect.Parameter]:
    """Return what a pipeline's call takes; of a modular one, what its blocks take."""
    if not is_modular(pipeline):
        return inspect.signature(pipeline.__call__).parameters
    blocks = blocks_of(pipeline)
    made = {output.name for output in blocks.intermediate_outputs}
    parameters = {}
    for taken in blocks.inputs:
        # What one block needs another may make: only the rest has to be given.
        needed = taken.required and taken.default is None and taken.name not in made
        default = inspect.Parameter.empty if needed else taken.default
        if taken.name:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters[taken.name] = inspect.Parameter(taken.name, kind, default=default)
    return parameters


def hide_bars(blocks: Any) -> None:
    """Turn the progress bars of blocks off, however deep they lie."""
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    for block in blocks.sub_blocks.values():
        hide_bars(block)


class ReturnsOutputs:
    """Mixed into a modular pipeline: its call returns what its last blocks make, by name."""

    def __call__(self, **inputs: Any) -> Any:
        """Run the blocks."""
        names = [output.name for output in blocks_of(self).outputs]
        return super().__call__(output=names, **inputs)  # type: ignore[misc]
