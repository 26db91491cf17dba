"""A LoRA loader for pipelines that diffusers has none for: that of their denoiser."""

from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin


class LoadsByModel(LoraBaseMixin):
    """Mixed into a pipeline without a loader; diffusers' verbs for adapters then work on it.

    Keys have to be as diffusers writes them: it knows no other spellings for these models.
    """

    components: dict[str, Any]

    @property
    def _lora_loadable_modules(self) -> list[str]:  # type: ignore[override]
        found = [n for n, model in self.components.items() if hasattr(model, "load_lora_adapter")]
        return sorted(found, key=lambda name: name != "transformer")

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
