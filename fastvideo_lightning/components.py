"""Models built without their weights: parameters on meta, and where the bytes of each one lie.

Classes, configurations and dtype rules are diffusers' and transformers' own. Where a file does not
match its model name by name (renamed keys, quantization, pickled weights), the library's loader
runs on the host, and the tensors it makes are the weights.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.checkpoint_folder import find_variants
from fastvideo_lightning.trust import check_pickle
from fastvideo_lightning.weights import (
    CheckpointError,
    StoredTensor,
    StoredWeight,
    find_tensors,
    read_json,
)

# From the FQN of a weight and its component's dtype to the dtype that this weight has.
DtypeRule = Callable[[str, torch.dtype], torch.dtype]


@dataclass(frozen=True)
class RunDtypes:
    """Floating-point dtype of a component, by the device of the run."""

    cpu: torch.dtype
    accelerator: torch.dtype

    def on(self, device_type: str) -> torch.dtype:
        """Return the dtype for a device type such as `cuda`."""
        return self.cpu if device_type == "cpu" else self.accelerator


@dataclass(frozen=True)
class Component:
    """One model of a pipeline.

    Attributes:
        module: The model; its parameters are on meta, or on the host where the library loaded them.
        sources: For each parameter and persistent buffer on meta, by FQN inside `module`, its file.
    """

    module: nn.Module
    sources: dict[str, StoredWeight] = field(default_factory=dict)


def build_component(
    model_class: type[nn.Module],
    folder: Path,
    *,
    dtypes: RunDtypes,
    quantization: object = None,
    device_type: str,
    variant: str | None,
    allow_pickle: bool = False,
) -> Component:
    """Build a model from its configuration and find its weights, reading only headers.

    Args:
        model_class: A class of diffusers or transformers.
        folder: The component's folder.
        dtypes: The dtypes it will run in.
        quantization: Diffusers' configuration of one, for its loader, or None.
        device_type: Where it will likely run; buffers that `__init__` makes take that dtype.
        variant: The variant of its files, such as `fp16`; files without it are used where
            the component has none with it.
        allow_pickle: Load pickled weights where there are no others.

    Raises:
        CheckpointError: If weights are missing, damaged or of another shape than the model's.
        ValueError: If they shall be quantized, and were saved so.
    """
    if is_diffusers_model(model_class) and not hasattr(model_class, "load_config"):
        how: dict[str, Any] = {"dtypes": dtypes, "quantization": quantization}
        how |= {"device_type": device_type, "variant": variant, "allow_pickle": allow_pickle}
        return _build_several(model_class, folder, how)
    dtype = dtypes.on(device_type)
    stem = weight_stem(model_class)
    variant = variant if variant and any(folder.glob(f"{stem}*.{variant}.*")) else None
    tensors = find_tensors(folder, stem, variant)
    if tensors is None and not any(folder.glob("*.bin*")):
        others = [f"variant={name!r}" for name in find_variants(folder, stem)]
        raise CheckpointError(
            f"No weights in {folder}: expected {stem}.safetensors or its shards there. "
            + (f"Pass {' or '.join(others)}." if others else "Download the checkpoint again.")
        )
    if tensors is None:
        check_pickle(folder, allow_pickle=allow_pickle)
    component = None
    stored = read_json(folder / "config.json").get("quantization_config")
    if stored and quantization is not None:
        raise ValueError(
            f"{folder} was saved quantized by {stored.get('quant_method')}, and is not quantized "
            "anew. Leave dtype out to load it as it is."
        )
    if tensors is not None and not stored and quantization is None:
        component = _build_without_weights(model_class, folder, tensors, dtypes, dtype)
    if component is None:
        kind: dict[str, Any] = {"variant": variant, "use_safetensors": tensors is not None}
        if quantization is not None:
            kind["quantization_config"] = quantization
        component = Component(_load_by_library(model_class, folder, dtype, kind))
    component.module.eval()
    return component


def is_diffusers_model(model_class: type) -> bool:
    """Whether the class is a diffusers model; otherwise it is taken for a transformers one."""
    from diffusers import ModelMixin

    return issubclass(model_class, ModelMixin)


def weight_stem(model_class: type) -> str:
    """Return the name, without endings, of the files that the class has its weights in."""
    return "diffusion_pytorch_model" if is_diffusers_model(model_class) else "model"


@contextmanager
def library_bars_off() -> Iterator[None]:
    """Have diffusers and transformers draw no bars: ours would be torn by them."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    shown = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _build_several(model_class: type[nn.Module], folder: Path, how: Mapping[str, Any]) -> Component:
    """Build what is several models and has no configuration of its own, as several control nets.

    As diffusers saves it: the first in the component's folder, the others beside it, as in
    `controlnet_1`.
    """
    further = (folder.with_name(f"{folder.name}_{number}") for number in count(1))
    folders = [folder, *takewhile(Path.is_dir, further)]
    parts = [build_component(_saved_class(each), each, **how) for each in folders]
    module = model_class([part.module for part in parts])
    fqns = {model: fqn for fqn, model in module.named_modules()}
    sources = {
        f"{fqns[part.module]}.{fqn}": source
        for part in parts
        for fqn, source in part.sources.items()
    }
    return Component(module.eval(), sources)


def _saved_class(folder: Path) -> type[nn.Module]:
    """Return the diffusers model whose configuration a folder holds."""
    import diffusers

    name = read_json(folder / "config.json").get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not is_diffusers_model(found):
        raise CheckpointError(
            f"{folder / 'config.json'} must name a model of diffusers in _class_name, got "
            f"{name!r}. Download the checkpoint again."
        )
    return found


def _build_without_weights(
    model_class: type[nn.Module],
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    dtypes: RunDtypes,
    dtype: torch.dtype,
) -> Component | None:
    """Build the model on meta; None when the names in the file are not the model's."""
    if is_diffusers_model(model_class):
        module, rule = _build_diffusers(model_class, folder, dtype)
    else:
        module, rule = _build_transformers(model_class, folder, dtype)
    stored = _match_names(module, tensors)
    if stored is None:
        return None
    sources = {}
    for fqn, own in module.state_dict(keep_vars=True).items():
        tensor = stored[fqn]
        if tensor.shape != own.shape:
            raise CheckpointError(
                f"{tensor.path} holds {fqn!r} with shape {list(tensor.shape)}, but "
                f"{model_class.__name__} needs {list(own.shape)}. "
                "Weights and config.json are not of one model."
            )
        if tensor.dtype.is_floating_point:
            cpu, accelerator = rule(fqn, dtypes.cpu), rule(fqn, dtypes.accelerator)
        else:
            cpu = accelerator = tensor.dtype
        sources[fqn] = StoredWeight(tensor, cpu, accelerator)
        if own.device.type != "meta":
            _read_buffer(module, fqn, sources[fqn], rule(fqn, dtype))
    return Component(module, sources)


def _build_diffusers(
    model_class: type[nn.Module], folder: Path, dtype: torch.dtype
) -> tuple[nn.Module, DtypeRule]:
    """Build as `ModelMixin.from_pretrained` does, up to the weights."""
    from diffusers.models.modeling_utils import no_init_weights

    config, unused, _ = model_class.load_config(  # type: ignore[attr-defined]
        folder, return_unused_kwargs=True, return_commit_hash=True
    )
    with no_init_weights(), _on_meta(dtype):
        module = model_class.from_config(config, **unused)  # type: ignore[attr-defined]
    module.register_to_config(_name_or_path=str(folder))
    kept = set(module._keep_in_fp32_modules or ())

    def rule(fqn: str, run_dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if kept.intersection(fqn.split(".")) else run_dtype

    return module, rule


def _build_transformers(
    model_class: type[nn.Module], folder: Path, dtype: torch.dtype
) -> tuple[nn.Module, DtypeRule]:
    """Build as `PreTrainedModel.from_pretrained` does, up to the weights."""
    from transformers.initialization import no_init_weights

    config = model_class.config_class.from_pretrained(folder)  # type: ignore[attr-defined]
    config.dtype = dtype
    config.name_or_path = str(folder)
    with no_init_weights(), _on_meta(dtype):
        module = model_class(config)
    module.tie_weights()  # type: ignore[operator]
    # What the model declares in a dtype of its own keeps it.
    fixed = {fqn: own.dtype for fqn, own in module.state_dict().items() if own.dtype != dtype}

    def rule(fqn: str, run_dtype: torch.dtype) -> torch.dtype:
        plan: dict[str, torch.dtype] = module._get_dtype_plan(run_dtype)  # type: ignore[operator]
        for pattern, planned in plan.items():
            if re.search(pattern.replace("*", ".*"), fqn):
                return planned
        own: torch.dtype = fixed.get(fqn, run_dtype)
        return own

    return module, rule


@contextmanager
def _on_meta(dtype: torch.dtype) -> Iterator[None]:
    """New parameters go to meta; buffers are computed for real, under the default dtype `dtype`."""
    from accelerate import init_empty_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        torch.set_default_dtype(before)


def _match_names(
    module: nn.Module, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor] | None:
    """Give every weight of the model its stored tensor; None unless names match one to one.

    A tied weight lies in the file under one of its names. A transformers model may be stored with
    or without its own base prefix.
    """
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    expected = module.state_dict(keep_vars=True)
    for rename in (str, prefix.__add__, lambda name: name.removeprefix(prefix)):
        found = {rename(name): tensor for name, tensor in tensors.items()}
        by_owner = {id(expected[name]): found[name] for name in expected if name in found}
        unexpected = [
            name
            for name in found.keys() - expected.keys()
            if not any(re.search(pattern, name) for pattern in ignored)
        ]
        if not unexpected and all(id(own) in by_owner for own in expected.values()):
            return {name: found.get(name, by_owner[id(own)]) for name, own in expected.items()}
    return None


def _read_buffer(module: nn.Module, fqn: str, source: StoredWeight, dtype: torch.dtype) -> None:
    """Replace a persistent buffer by the one in the file."""
    path, _, name = fqn.rpartition(".")
    stored = source.stored_dtype
    buffer = source.as_host_tensor(dtype if stored.is_floating_point else stored)
    module.get_submodule(path)._buffers[name] = buffer


def _load_by_library(
    model_class: type[nn.Module], folder: Path, dtype: torch.dtype, kind: Mapping[str, Any]
) -> nn.Module:
    """Load on the host with the library's own `from_pretrained`."""
    module: nn.Module
    try:
        with library_bars_off():
            module, report = model_class.from_pretrained(  # type: ignore[attr-defined]
                folder, output_loading_info=True, dtype=dtype, **kind
            )
    except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
        raise CheckpointError(
            f"{model_class.__name__} cannot load the weights in {folder}: {error}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {model_class.__name__}, such as "
            f"{missing[0]!r}. Weights and config.json are not of one model."
        )
    return module
