"""The prompts of a run: what is asked for, where it was written, and which process makes it.

Read `dataset`, then `files` (prompts in a file) and `sampler` (which process makes which video);
`datamodule` is the same for `lightning.Trainer`.
"""

from typing import TYPE_CHECKING

from fastvideo_lightning.libraries import hand_on

if TYPE_CHECKING:
    from fastvideo_lightning.prompts.datamodule import PromptDataModule as PromptDataModule
    from fastvideo_lightning.prompts.dataset import PromptDataset as PromptDataset
    from fastvideo_lightning.prompts.dataset import PromptFileError as PromptFileError
    from fastvideo_lightning.prompts.files import read_prompt_file as read_prompt_file

_HOME = {
    "PromptDataModule": "datamodule",
    "PromptDataset": "dataset",
    "PromptFileError": "dataset",
    "read_prompt_file": "files",
}

__all__ = list(_HOME)


__getattr__ = hand_on(__name__, _HOME)
