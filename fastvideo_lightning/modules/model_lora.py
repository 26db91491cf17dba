"""A LoRA loader for pipelines that diffusers has none for: that of their denoiser."""

from collections.abc import Mapping
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

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
        self, path: str, *, adapter_name: str, weight_name: str | None = None
    ) -> None:
        """Load a file's layers of the denoiser.

        Args:
            path: Its folder, or a hub id.
            adapter_name: What the adapter is called.
            weight_name: The file's name.
        """
        name = self._lora_loadable_modules[0]
        getattr(self, name).load_lora_adapter(
            path, prefix=name, adapter_name=adapter_name, weight_name=weight_name
        )
