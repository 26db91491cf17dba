"""The prompts of a run: what is asked for, where it was written, and which process makes it.

Read `dataset`, then `files` (prompts in a file) and `sampler` (which process makes which video);
`datamodule` is the same for `lightning.Trainer`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvideo_lightning.prompts.datamodule import PromptDataModule
    from fastvideo_lightning.prompts.dataset import PromptDataset, PromptFileError
    from fastvideo_lightning.prompts.files import read_prompt_file

_HOME = {
    "PromptDataModule": "datamodule",
    "PromptDataset": "dataset",
    "PromptFileError": "dataset",
    "read_prompt_file": "files",
}

__all__ = [
    "PromptDataModule",
    "PromptDataset",
    "PromptFileError",
    "read_prompt_file",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
