"""LoRA adapters of a video module, by diffusers' own loaders and PEFT.

Adapters that were added to the weights: what cannot be done meanwhile.

A layer whose weights hold adapters computes by its weights alone. One that is switched on beside
them would not count; and what is switched off, PEFT takes out in the midst of a step, of the copy
on the device, while the host's keeps it. So adapters are switched before they are fused, or after
they were taken out.

A LoRA loader for pipelines that diffusers has none for: that of their denoiser.
"""

import os
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import isfinite
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

from fastvideo_lightning.checkpoint.components import LOADING
from fastvideo_lightning.modules.adapter_tensors import (
    AdapterTensors,
    all_placed,
    alphas_of,
    respelled,
    untraced,
)
from fastvideo_lightning.modules.lora_files import (
    check_adapter_name,
    explained,
    find_adapter,
    name_of_adapter,
    read_adapter,
)
from fastvideo_lightning.modules.lora_fsdp import (
    check_can_fuse,
    place_beside_shards,
    skip_missing_adapters,
    unsharded,
)
from fastvideo_lightning.modules.roles import read_roles


def check_not_fused(layers: Iterable[nn.Module], verb: str) -> None:
    """Raise RuntimeError where adapters are in the weights, so that `verb` would not count."""
    fused = {name for layer in layers for name in getattr(layer, "merged_adapters", ())}
    if fused:
        raise RuntimeError(
            f"{verb} cannot be called while adapters are fused into the weights (fused are: "
            f"{', '.join(sorted(fused))}). Call unfuse_lora() first."
        )


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


class TakesLora(nn.Module):
    """What a video module can do with LoRA adapters.

    An adapter may come and go while the model is placed, between two videos: the placement
    callbacks take over its tensors before the next one. A model whose blocks are streamed streams
    the adapters' parts with them, those that are switched off too.
    """

    pipeline: Any
    denoisers: Any
    execution_device: Any
    _lora_weights: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def check_placement(self) -> None:
        """Raise RuntimeError naming a component that nothing has placed."""

    @property
    def loras(self) -> dict[str, float]:
        """Weight of each loaded adapter by its name; 0 where it is switched off."""
        loaded = {name for names in _loaded(self.pipeline).values() for name in names}
        return {name: self._lora_weights.get(name, 0.0) for name in sorted(loaded)}

    def check_takes_lora(self, *chosen: str | None) -> None:
        """Check, before any weight is read, that adapters can be loaded at all.

        Args:
            chosen: FQNs of denoisers that some are for; None means the first.

        Raises:
            ImportError: If PEFT is not installed.
            ValueError: If diffusers cannot put layers into the denoiser, or there is none so named.
        """
        if not _has_peft():
            raise ImportError(
                'LoRA needs PEFT. Install it: pip install "fastvideo-lightning[lora]" (or peft).'
            )
        if self._denoisers_with_adapters:
            for denoiser in chosen:
                self._expert_arguments(denoiser)
            return
        name = type(self.pipeline).__name__
        if not self.denoisers:
            raise ValueError(f"{name} takes no LoRA: it has no denoiser.")
        kinds = [type(self.get_submodule(fqn)).__name__ for fqn in self.denoisers]
        raise ValueError(
            f"{name} takes no LoRA: diffusers cannot put layers into its {' or '.join(kinds)}. "
            "Leave it out."
        )

    @property
    def _denoisers_with_adapters(self) -> tuple[str, ...]:
        pipeline = self.pipeline
        loaded_into = getattr(pipeline, "_lora_loadable_modules", ())
        found = denoisers_with_adapters(pipeline.components)
        return tuple(name for name in found if name in loaded_into)

    def load_lora(
        self,
        path: str | os.PathLike[str],
        *,
        weight: float = 1.0,
        name: str | None = None,
        denoiser: str | None = None,
    ) -> str:
        """Load an adapter beside those that are there.

        Args:
            path: A safetensors file, a folder with one, or a hub id.
            weight: How strongly it counts; see `set_loras`.
            name: What to call it; by default as its file, or as the folder of a file named
                `pytorch_lora_weights`.
            denoiser: FQN of the model it belongs to, where there are two experts; by default the
                first, with a warning.

        Returns:
            The name.

        Raises:
            ImportError: If PEFT is not installed.
            FileNotFoundError: If there is no such file, none in the folder, or no way to the hub.
            ValueError: If the name is taken or has a dot, the weight not a finite number, the
                denoiser takes no LoRA, or the file is not one for it.
            RuntimeError: If the model's weights have not been read yet, or hold fused adapters.
        """
        self.check_takes_lora(denoiser)
        self._check_not_fused("load_lora")
        _check_weight("weight", weight)
        check_adapter_name(name)
        path = os.path.expanduser(path)
        found = find_adapter(path)
        is_here = os.path.exists(path)  # a file of the hub's cache is called as the hub calls it
        name = name or name_of_adapter(found if found is not None and is_here else path)
        if name in self.loras:
            raise ValueError(
                f"A LoRA named {name!r} is loaded already. Pass another one, name={name + '_2'!r}, "
                f"or call unload_lora({name!r}) first."
            )
        self._check_weights_read()
        self._tell_of_experts(path, denoiser)
        before = self.loras
        try:
            with self._undivided():
                self._load(path, found, name, denoiser)
        except BaseException:
            if name in self.loras:
                self._remove(name)
            self._switch(before)
            raise
        self.set_loras({**before, name: weight})
        return name

    def _load(
        self, path: str | os.PathLike[str], found: Path | None, name: str, denoiser: str | None
    ) -> None:
        pipeline, prefix = self.pipeline, self._denoisers_with_adapters[0]
        kind = type(pipeline).__name__
        # It may be beside others; PEFT warns of it. Said once for all: other threads share filters.
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        with LOADING, explained(path, kind):  # PEFT makes its layers on meta, for all threads
            file = read_adapter(path, found)
            model = self.get_submodule(denoiser or prefix)
            tensors = respelled(file, pipeline, prefix, model)
            further = self._expert_arguments(denoiser)
            if isinstance(pipeline, LoadsByModel):
                further = {"file": file, "denoiser": denoiser or prefix}
            with all_placed(file, pipeline, name):
                pipeline.load_lora_weights(tensors, adapter_name=name, **further)
        if name not in self.loras:
            names = ", ".join(self.loras) or "none"
            raise ValueError(
                f"{os.fspath(path)} holds no LoRA weights for {kind} (loaded are: {names}). Pass "
                "one that was made for it."
            )

    def _tell_of_experts(self, path: str | os.PathLike[str], denoiser: str | None) -> None:
        """Warn where one of two experts gets an adapter that nobody has said it is for."""
        names = self._denoisers_with_adapters
        if denoiser is None and len(names) > 1 and self.denoisers_take_turns:
            warnings.warn(
                f"The LoRA {os.fspath(path)} goes into {names[0]} alone, which computes a part of "
                f"the steps; {names[1]} computes the rest. Say which one it was made for: "
                f"denoiser={names[0]!r} or denoiser={names[1]!r}; on the command line, "
                f"--lora PATH@{names[1]}.",
                stacklevel=3,
            )

    def _remove(self, name: str) -> None:
        if len(self.loras) > 1:
            self.pipeline.delete_adapters(name)
        else:
            self.pipeline.unload_lora_weights()

    def set_loras(self, weights: Mapping[str, float]) -> None:
        """Switch adapters on and off: those given count with their weights, all others not at all.

        Args:
            weights: Weight by name, such as `{"style": 0.8}`; 1 is as it was trained.

        Raises:
            TypeError: If it is no mapping.
            ValueError: If a name is not loaded, or a weight not a finite number.
            RuntimeError: If adapters are fused into the weights.
        """
        if not isinstance(weights, Mapping):
            raise TypeError(
                f"set_loras takes a weight for each name, got {weights!r}. Pass a dictionary such "
                "as {'style': 0.8}."
            )
        loaded = self.loras
        for name, weight in weights.items():
            if name not in loaded:
                raise ValueError(
                    f"No LoRA named {name!r} is loaded (loaded are: {', '.join(loaded) or 'none'})."
                )
            _check_weight(f"The weight of {name!r}", weight)
        self._check_not_fused("set_loras")
        self._switch(weights)

    def _switch(self, weights: Mapping[str, float]) -> None:
        pipeline = self.pipeline
        active = {name: float(weight) for name, weight in weights.items() if weight}
        if active:
            pipeline.enable_lora()
            pipeline.set_adapters(list(active), list(active.values()))
        elif self.loras:
            pipeline.disable_lora()
        self._lora_weights = active

    def fuse_lora(self, *, scale: float = 1.0) -> None:
        """Add the active adapters to the weights: a step then computes no more than without them.

        Args:
            scale: Multiplies the adapters' own weights, and stays in them when they are unfused.

        Raises:
            ValueError: If none is loaded or switched on, or FSDP shards the weights.
            RuntimeError: If some are in the weights already.
        """
        self._check_loaded()
        _check_weight("scale", scale)
        self._check_not_fused("fuse_lora")
        if not self._lora_weights:
            first = next(iter(self.loras))
            raise ValueError(
                f"No LoRA is switched on (loaded are: {', '.join(self.loras)}). Call "
                f"set_loras({{{first!r}: 1.0}}) first."
            )
        with ExitStack() as passing:
            for fqn in self.denoisers:
                denoiser = self.get_submodule(fqn)
                check_can_fuse(fqn, denoiser)
                passing.enter_context(skip_missing_adapters(denoiser))
            self.pipeline.fuse_lora(components=list(_loaded(self.pipeline)), lora_scale=scale)
        self._lora_weights = {name: scale * w for name, w in self._lora_weights.items()}

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights, up to rounding, as diffusers does."""
        self._check_loaded()
        self.pipeline.unfuse_lora(components=list(_loaded(self.pipeline)))

    def unload_lora(self, name: str | None = None) -> None:
        """Remove an adapter, or all of them; what was fused stays in the weights.

        Raises:
            ValueError: If there is none of that name.
        """
        loaded = self.loras
        if name is not None and name not in loaded:
            raise ValueError(
                f"No LoRA named {name!r} is loaded (loaded are: {', '.join(loaded) or 'none'})."
            )
        with self._undivided():
            if name is not None:
                self._remove(name)
            elif loaded:
                self.pipeline.unload_lora_weights()
        self._switch({n: w for n, w in loaded.items() if name is not None and n != name})

    @contextmanager
    def _undivided(self) -> Iterator[None]:
        """While layers are put around others, or taken away, have no denoiser divided."""
        with ExitStack() as divided:
            for fqn in self.denoisers:
                denoiser = self.get_submodule(fqn)
                divided.enter_context(unsharded(denoiser))
            yield
            for fqn in self.denoisers:
                denoiser = self.get_submodule(fqn)
                place_beside_shards(denoiser, self.execution_device)

    def _check_not_fused(self, verb: str) -> None:
        check_not_fused(self.modules(), verb)

    def _check_loaded(self) -> None:
        if not self.loras:
            raise ValueError("No LoRA is loaded. Call load_lora(path) first.")

    def _check_weights_read(self) -> None:
        """An adapter is put around weights: they have to be there."""
        fabric = getattr(self, "_fabric", None)
        if fabric is not None:
            self.check_placement()
            return
        for fqn in self.denoisers:
            if any(weight.is_meta for weight in self.get_submodule(fqn).parameters()):
                raise RuntimeError(
                    f"The weights of {fqn} have not been read yet. Call load_lora after "
                    "fabric.setup(module), or after the placement callbacks' attach()."
                )

    def _expert_arguments(self, denoiser: str | None) -> dict[str, Any]:
        """What tells diffusers' loader which of two denoisers is meant."""
        names = self._denoisers_with_adapters
        if denoiser is None or denoiser == names[0]:
            return {}
        takes_others = denoiser == "transformer_2" or isinstance(self.pipeline, LoadsByModel)
        if denoiser not in names or not takes_others:
            raise ValueError(
                f"denoiser must be one of {', '.join(names)}, got {denoiser!r}. Leave it out for "
                f"{names[0]}."
            )
        return {"load_into_transformer_2": True}


def _loaded(pipeline: Any) -> dict[str, list[str]]:
    """Names of the adapters by component."""
    if not hasattr(pipeline, "get_list_adapters") or not _has_peft():
        return {}
    found: dict[str, list[str]] = pipeline.get_list_adapters()
    return {component: names for component, names in found.items() if names}


def _has_peft() -> bool:
    import diffusers.utils

    return bool(diffusers.utils.USE_PEFT_BACKEND)  # type: ignore[attr-defined]


def _check_weight(what: str, weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not isfinite(weight):
        raise ValueError(f"{what} must be a finite number, got {weight!r}. Pass one such as 0.8.")
