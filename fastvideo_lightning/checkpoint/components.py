"""Models built without their weights: parameters on meta, and where the bytes of each one lie.

Classes, configurations and dtype rules are diffusers' and transformers' own. Where a file does not
match its model name by name (renamed keys, quantization, pickled weights), the library's loader
runs on the host, and the tensors it makes are the weights.
"""

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import count, takewhile
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvideo_lightning.checkpoint.building import SPARE_ELEMENTS, built_on_meta, computing_in
from fastvideo_lightning.checkpoint.folder import CheckpointError, check_files, find_variants
from fastvideo_lightning.checkpoint.gguf import dequantize, is_of_blocks, put_layers
from fastvideo_lightning.checkpoint.names import (
    check_placed,
    find_unplaced,
    lacks_weights,
    match_names,
)
from fastvideo_lightning.checkpoint.trust import check_pickle
from fastvideo_lightning.checkpoint.weights import (
    StoredTensor,
    StoredWeight,
    find_tensors,
    read_json,
)

# From the FQN of a weight and its component's dtype to the dtype that this weight has.
DtypeRule = Callable[[str, torch.dtype], torch.dtype]

# From a model and what is stored to the same by the model's names: where it lies in the file, or
# what the library makes of it.
Converter = Callable[
    [nn.Module, Mapping[str, StoredTensor], torch.dtype],
    Mapping[str, StoredTensor | torch.Tensor],
]

CONFIG = "config.json"
# By quant_method: what is imported, and what is installed for it.
_QUANTIZERS = {
    "auto-round": ("auto_round", "auto-round"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "hqq": ("hqq", "hqq"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "quanto": ("optimum", "optimum-quanto"),
    "sdnq": ("sdnq", "sdnq"),
    "torchao": ("torchao", "torchao"),
}

LOADING = threading.RLock()
"""Held while a library's own loader, which switches the whole process, may be at work."""


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
    method = _quantized_by(folder / CONFIG)
    if method and quantization is not None:
        raise ValueError(
            f"{folder} was saved quantized by {method}, and is not quantized "
            "anew. Leave dtype out to load it as it is."
        )
    with LOADING:
        if tensors is not None and not method and quantization is None:
            component = build_without_weights(model_class, folder, tensors, dtypes, dtype)
        if component is None:
            kind: dict[str, Any] = {"variant": variant, "use_safetensors": tensors is not None}
            if quantization is not None:
                kind["quantization_config"] = quantization
            is_quantized = bool(method) or quantization is not None
            module = _load_by_library(model_class, folder, dtype, kind, is_quantized=is_quantized)
            component = Component(module)
    component.module.eval()
    return component


def _quantized_by(config: Path) -> str | None:
    """Return what a model was saved quantized by, as its configuration says; None if by nothing."""
    stored = read_json(config).get("quantization_config")
    if not stored:
        return None
    if isinstance(stored, dict):
        method = str(stored.get("quant_method"))
        module, package = _QUANTIZERS.get(method, (None, ""))
        if module is not None and find_spec(module) is None:
            raise CheckpointError(
                f"{config.parent} was saved quantized by {method}, whose package is not installed. "
                f"Install it: pip install {package}"
            )
        return method
    raise CheckpointError(
        f"{config} must have an object as its quantization_config, got {stored!r:.80}. "
        "Download the checkpoint again."
    )


def is_diffusers_model(model_class: type) -> bool:
    """Whether the class is a diffusers model; otherwise it is taken for a transformers one."""
    from diffusers import ModelMixin

    return issubclass(model_class, ModelMixin)


def weight_stem(model_class: type) -> str:
    """Return the name, without endings, of the files that the class has its weights in."""
    return "diffusion_pytorch_model" if is_diffusers_model(model_class) else "model"


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

    check_files(folder)
    name = read_json(folder / CONFIG).get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if (
        not isinstance(found, type)
        or not is_diffusers_model(found)
        or not hasattr(found, "load_config")  # several models have no configuration
    ):
        raise CheckpointError(
            f"{folder / CONFIG} must name a model of diffusers in _class_name, got "
            f"{name!r}. Download the checkpoint again."
        )
    return found


def build_without_weights(
    model_class: type[nn.Module],
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    dtypes: RunDtypes,
    dtype: torch.dtype,
    convert: Converter | None = None,
    *,
    keeps_blocks: bool = True,
) -> Component | None:
    """Build the model on meta; None when the names in the file are not the model's.

    Args:
        model_class: A class of diffusers or transformers.
        folder: Has its configuration.
        tensors: What is stored, by name.
        dtypes: The dtypes it will run in.
        dtype: That of them that it likely runs in.
        convert: Brings other names to the model's.
        keeps_blocks: Have linear layers compute with GGUF's blocks as they lie in the file.

    Raises:
        CheckpointError: If weights are missing after that, or are of other shapes.
    """
    module, rule = build_on_meta(model_class, folder, tensors, dtype)
    stored: Mapping[str, StoredTensor | torch.Tensor] | None = match_names(module, tensors)
    if stored is None and convert is not None:
        converted = convert(module, tensors, dtype)
        stored = match_names(module, converted)
        if stored is None:
            raise lacks_weights(module, converted, tensors)
    if stored is None:
        return None
    own = module.state_dict(keep_vars=True)
    _check_shapes(model_class, {fqn: weight.shape for fqn, weight in own.items()}, stored, tensors)
    if keeps_blocks and put_layers(module, stored, rule, dtype):
        own = module.state_dict(keep_vars=True)
    sources = {}
    made: dict[int, torch.Tensor] = {}
    for fqn, weight in own.items():
        tensor = stored[fqn]
        if isinstance(tensor, torch.Tensor):  # not as it lies in the file
            if id(weight) not in made:
                made[id(weight)] = _host_tensor(weight, tensor, rule(fqn, dtype))
            _put(module, fqn, made[id(weight)])
            continue
        if tensor.encoding is not None and is_of_blocks(weight):
            tensor = replace(tensor, encoding=None)
        cpu = accelerator = wanted = tensor.dtype
        if tensor.encoding is not None or tensor.dtype.is_floating_point:
            cpu, accelerator, wanted = (
                rule(fqn, each) for each in (dtypes.cpu, dtypes.accelerator, dtype)
            )
        sources[fqn] = StoredWeight(tensor, cpu, accelerator)
        if weight.device.type != "meta":
            _put(module, fqn, sources[fqn].as_host_tensor(wanted))
    return Component(module, sources)


def _check_shapes(
    model_class: type[nn.Module],
    needed: Mapping[str, torch.Size],
    stored: Mapping[str, StoredTensor | torch.Tensor],
    tensors: Mapping[str, StoredTensor],
) -> None:
    for fqn, tensor in stored.items():
        if isinstance(tensor, StoredTensor):
            shape = tensor.weight_shape
        else:
            shape = torch.Size(getattr(tensor, "quant_shape", tensor.shape))
        if shape != needed[fqn]:
            raise CheckpointError(
                f"{min(tensor.path for tensor in tensors.values())} holds {fqn!r} with shape "
                f"{list(shape)}, but {model_class.__name__} needs {list(needed[fqn])}. "
                "Weights and config.json are not of one model."
            )


def build_on_meta(
    model_class: type[nn.Module],
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
) -> tuple[nn.Module, DtypeRule]:
    """Build a model of its configuration, with room for no more than what is stored."""
    build = _build_diffusers if is_diffusers_model(model_class) else _build_transformers
    largest = sum(prod(tensor.shape) for tensor in tensors.values()) + SPARE_ELEMENTS
    # A tied weight is a parameter for a while where it is stored once.
    bounds = {"max_parameters": 2 * len(tensors) + 1000, "max_elements": largest}
    try:
        return build(model_class, folder, dtype, bounds)
    except CheckpointError:
        raise
    except ImportError as error:
        raise needs_package(f"{model_class.__name__} in {folder}", error) from error
    except Exception as error:  # whatever a configuration makes a constructor trip over
        raise CheckpointError(
            f"{folder / CONFIG} describes no {model_class.__name__} whose weights lie beside it "
            f"({first_line(error)}). Download the checkpoint again."
        ) from error


def _host_tensor(own: torch.Tensor, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of the host as what the model has in its place."""
    if is_of_blocks(tensor):
        if is_of_blocks(own):
            return tensor
        tensor = dequantize(tensor)
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return nn.Parameter(tensor, own.requires_grad) if isinstance(own, nn.Parameter) else tensor


def _put(module: nn.Module, fqn: str, tensor: torch.Tensor) -> None:
    path, _, name = fqn.rpartition(".")
    owner = module.get_submodule(path)
    registry: dict[str, Any] = owner._buffers if name in owner._buffers else owner._parameters
    registry[name] = tensor


def _build_diffusers(
    model_class: type[nn.Module], folder: Path, dtype: torch.dtype, bounds: Mapping[str, int]
) -> tuple[nn.Module, DtypeRule]:
    """Build as `ModelMixin.from_pretrained` does, up to the weights."""
    config, unused, _ = model_class.load_config(  # type: ignore[attr-defined]
        folder, return_unused_kwargs=True, return_commit_hash=True
    )
    with built_on_meta(dtype, **bounds):
        module = model_class.from_config(config, **unused)  # type: ignore[attr-defined]
    module.register_to_config(_name_or_path=str(folder))
    kept = set(module._keep_in_fp32_modules or ())

    def rule(fqn: str, run_dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if kept.intersection(fqn.split(".")) else run_dtype

    return module, rule


def _build_transformers(
    model_class: type[nn.Module], folder: Path, dtype: torch.dtype, bounds: Mapping[str, int]
) -> tuple[nn.Module, DtypeRule]:
    """Build as `PreTrainedModel.from_pretrained` does, up to the weights."""
    config = model_class.config_class.from_pretrained(folder)  # type: ignore[attr-defined]
    config.dtype = dtype
    config.name_or_path = str(folder)
    with built_on_meta(dtype, **bounds):
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


def _load_by_library(
    model_class: type[nn.Module],
    folder: Path,
    dtype: torch.dtype,
    kind: Mapping[str, Any],
    *,
    is_quantized: bool,
) -> nn.Module:
    """Load on the host with the library's own `from_pretrained`.

    It keeps other threads from nothing but making modules of their own: those may come without
    weights while it is at work. Two of it never are, see `LOADING`.
    """
    name = model_class.__name__
    try:
        module, report = _of_own_dtype(model_class).from_pretrained(
            folder, output_loading_info=True, dtype=dtype, **kind
        )
    except ImportError as error:
        raise needs_package(f"{name} in {folder}", error) from error
    except Exception as error:  # whatever a damaged file makes a loader trip over
        raise CheckpointError(
            f"{name} cannot load the weights in {folder}: {first_line(error)}"
        ) from error
    module.__class__ = model_class
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {name}, such as "
            f"{missing[0]!r}. Weights and config.json are not of one model."
        )
    unplaced = find_unplaced(module, report["unexpected_keys"])
    if is_quantized:  # layers have tensors there that are no weights of the model
        unplaced = [fqn for fqn in unplaced if not _has_layer(module, fqn)]
    check_placed(unplaced, name, [folder])
    made: nn.Module = module
    return made


def _of_own_dtype(model_class: Any) -> Any:
    """Return a subclass whose loader leaves torch's default dtype alone, which videos compute in.

    See Note [Building unseen]; the dtype is the loading thread's.
    """

    def keep_default(cls: Any, dtype: torch.dtype) -> torch.dtype:
        cls._built_in = dtype
        return torch.get_default_dtype()

    def from_config(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls._built_in is None:
            return super(made, cls).from_config(*args, **kwargs)
        with computing_in(cls._built_in):
            return super(made, cls).from_config(*args, **kwargs)

    def get_init_context(cls: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
        first, *others = super(made, cls).get_init_context(dtype, *args, **kwargs)
        assert first.func.__name__ == "local_torch_dtype", first
        return [computing_in(dtype), *others]

    if is_diffusers_model(model_class):
        own = {
            "_built_in": None,
            "_set_default_torch_dtype": classmethod(keep_default),
            "from_config": classmethod(from_config),
        }
    else:
        own = {"get_init_context": classmethod(get_init_context)}
    own |= {"__module__": model_class.__module__, "__doc__": model_class.__doc__}
    made: Any = type(model_class.__name__, (model_class,), own)
    return made


def _has_layer(module: nn.Module, fqn: str) -> bool:
    """Whether a name, or a beginning of it, is that of a layer with tensors of its own."""
    layers = dict(module.named_modules())
    while "." in fqn:
        fqn = fqn.rpartition(".")[0]
        if fqn in layers:
            layer = layers[fqn]
            return bool(layer._parameters or layer._buffers)
    return False


def needs_package(what: str, error: ImportError) -> CheckpointError:
    """Return the error that says what to install for a component."""
    reason = first_line(error)
    asked = re.search(r"`?(pip install [^`]+)`?", str(error))
    missing = (error.name or "").partition(".")[0]
    install = asked[1].rstrip(").\n ") if asked else f"pip install {missing}" if missing else ""
    return CheckpointError(
        f"{what} needs a package that is not installed ({reason}). Install it"
        + (f": {install}" if install else ".")
    )


def first_line(error: BaseException) -> str:
    """Return what an error says, in a line; of one that says nothing, its kind."""
    text = str(error).strip().partition("\n")[0].rstrip(" .:")[:300]
    return (
        text
        if isinstance(error, ValueError | RuntimeError | OSError) and text
        else (f"{type(error).__name__}: {text}" if text else type(error).__name__)
    )
