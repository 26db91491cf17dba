"""What a VideoGenerator does with LoRA adapters: it hands them to its module, once set up."""

import os
from collections.abc import Mapping
from typing import Any


class GeneratesWithLora:
    """The LoRA verbs of a generator; each is the module's, which see for what they raise."""

    module: Any

    @property
    def loras(self) -> dict[str, float]:
        """Weight of each loaded adapter by its name; 0 where it is switched off."""
        weights: dict[str, float] = self.module.loras
        return weights

    def load_lora(
        self,
        path: str | os.PathLike[str],
        *,
        weight: float = 1.0,
        name: str | None = None,
        denoiser: str | None = None,
    ) -> str:
        """Load a LoRA (file, folder or hub id) beside those that are there; return its name."""
        self._check_between_batches("load_lora")
        self.module.check_takes_lora(denoiser)
        self.setup()
        loaded: str = self.module.load_lora(path, weight=weight, name=name, denoiser=denoiser)
        return loaded

    def set_loras(self, weights: Mapping[str, float]) -> None:
        """Switch: the adapters given count with their weights, all others not at all."""
        self._check_between_batches("set_loras")
        self.module.set_loras(weights)

    def fuse_lora(self, *, scale: float = 1.0) -> None:
        """Add the active adapters to the model's weights."""
        self._check_between_batches("fuse_lora")
        self.module.fuse_lora(scale=scale)

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again."""
        self._check_between_batches("unfuse_lora")
        self.module.unfuse_lora()

    def unload_lora(self, name: str | None = None) -> None:
        """Remove an adapter, or all of them."""
        self._check_between_batches("unload_lora")
        self.module.unload_lora(name)

    def _check_between_batches(self, verb: str) -> None:
        """Raise RuntimeError in the middle of a batch; the generator knows of it."""
        raise NotImplementedError

    def setup(self) -> None:
        """Read and place the weights; the generator knows how."""
        raise NotImplementedError
