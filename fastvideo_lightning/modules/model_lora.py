"""A LoRA loader for pipelines that diffusers has none for: that of their denoiser."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

from fastvideo_lightning.modules.adapter_tensors import AdapterTensors, alphas_of, untraced
from fastvideo_lightning.modules.roles import read_roles


def denoisers_with_adapters(components: Mapping[str, Any]) -> tuple[str, ...]:
    """Return those denoisers, by name, that diffusers can put layers into.

    It can into some VAEs too; and not into control nets, which stand beside a denoiser that takes
    adapters.
    """
    models = {name: each for name, each in components.items() if isinstance(each, nn.Module)}
    takes = [n for n in read_roles(models).denoisers if hasattr(models[n], "load_lora_adapter")]
    return tuple(sorted(takes, key=lambda name: name != "transformer"))


class LoadsByModel(LoraBaseMixin):
    """Mixed into a pipeline without a loader; diffusers' verbs for adapters then work on it.

    Keys have to be as diffusers writes them: it knows no other spellings for these models.
    """

    components: dict[str, Any]

    @property
    def _lora_loadable_modules(self) -> list[str]:  # type: ignore[override]
        return list(denoisers_with_adapters(self.components))

    def load_lora_weights(  # type: ignore[override]
        self,
        weights: dict[str, torch.Tensor],
        *,
        adapter_name: str,
        file: AdapterTensors,
        denoiser: str,
    ) -> None:
        """Load a file's layers of a denoiser.

        Args:
            weights: By key.
            adapter_name: What the adapter is called.
            file: What they were read from.
            denoiser: Which one they are for; keys begin with the first one's name.
        """
        plain = untraced(file, weights)
        getattr(self, denoiser).load_lora_adapter(
            plain,
            prefix=self._lora_loadable_modules[0],
            adapter_name=adapter_name,
            metadata=file.metadata or alphas_of(file, plain),
        )
