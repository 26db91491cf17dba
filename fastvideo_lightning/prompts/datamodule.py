"""PromptDataModule: prompts for lightning.Trainer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from fastvideo_lightning.prompts.dataset import PromptDataset


class PromptDataModule(L.LightningDataModule):
    """A `PromptDataset` as what `Trainer.predict(module, datamodule=...)` takes.

    Args:
        prompts: As in `PromptDataset`.
        seed: Seed of the first prompt; the n-th gets `seed + n`.
        seeds: Videos of each prompt, one for each of that many seeds from its own on.
        **sampling: `SamplingParams` fields for all prompts.

    Raises:
        TypeError, ValueError: As `PromptDataset` does.
    """

    def __init__(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        seed: int = 1024,
        *,
        seeds: int = 1,
        **sampling: Any,
    ) -> None:
        super().__init__()
        self.dataset = PromptDataset(prompts, seed, seeds=seeds, **sampling)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return a loader of one prompt at a time; with several ranks, each takes its share."""
        return DataLoader(self.dataset, batch_size=1, collate_fn=_only)  # type: ignore[arg-type]


def _only(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    (item,) = batch
    return item
