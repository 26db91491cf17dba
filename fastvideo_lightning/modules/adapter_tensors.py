"""What becomes of the tensors of an adapter's file: each is used, or an error names it.

Diffusers' converters know how trainers spell their keys, and throw away what they have no place
for. So the tensors of a file go through a converter with their names on: what comes out at its
other end tells which have been used.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

# Changes that are no low-rank pair: diffusers has no layer that would hold them.
_DIFFERENCES = (".diff", ".diff_b", ".diff_m", ".w_norm", ".b_norm")
_HALVES = {"lora_A": "lora_B", "lora_down": "lora_up", "down": "up"}
_HALF = re.compile(
    r"(?P<module>.+)[._](?P<half>lora_[AB]|lora_(?:down|up)|lora(?:_linear_layer)?\.(?:down|up))"
    r"(?P<adapter>\.[^.]+)?\.(?P<kind>weight|bias)"
)
_NUMBERS = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__float__, torch.Tensor.__int__}


class AdapterError(ValueError):
    """A file whose tensors cannot all be used; the message names the file and such a tensor."""


@dataclass
class AdapterTensors:
    """The tensors of one file, and what is known of them.

    Attributes:
        path: The file, as the user named it.
        tensors: By key; each knows its own key, whatever is made of it.
        header: What stands in the file beside the tensors, or in PEFT's configuration of it.
        metadata: What diffusers reads out of the header for itself.
        told: Keys of the tensors that a converter has read as numbers, as it does with an alpha.
        converted: Of what a converter made, by its address, the keys that it was made of.
    """

    path: str
    tensors: dict[str, torch.Tensor]
    header: Mapping[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None
    told: set[str] = field(default_factory=set)
    converted: dict[int, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, tensor in self.tensors.items():
            traced = tensor.as_subclass(Traced)
            traced.keys, traced.file = frozenset([key]), self
            self.tensors[key] = traced

    def check_pairs(self) -> None:
        """Raise AdapterError where one half of a pair is missing."""
        found = {
            (match["module"], _place(match), key): match
            for key in self.tensors
            if (match := _HALF.fullmatch(key)) and match["kind"] == "weight"
        }
        there = {(module, place) for module, place, _ in found}
        lacking = []
        for (module, place, key), match in found.items():
            if (module, not place) not in there:
                lacking.append((_other_half(match["half"], key), key))
        if lacking:
            missing, key = lacking[0]
            raise AdapterError(
                f"The LoRA {self.path} lacks {len(lacking)} tensors, such as {missing}, the other "
                f"half of {key}. It was most likely cut off: save or download it again."
            )

    def check_used(self, keys: Iterable[str], why: str) -> None:
        """Raise AdapterError for tensors that are not used; warn of those that cannot be.

        Args:
            keys: Those that are not.
            why: What is said of them.
        """
        unused = [key for key in keys if bool(self.tensors[key].count_nonzero())]
        extra = [key for key in unused if key.endswith(_DIFFERENCES)]
        if others := [key for key in unused if key not in extra]:
            raise AdapterError(
                f"{len(others)} weights of the LoRA {self.path} {why}, such as {others[0]}. It was "
                "most likely made for another model: pass one that was made for this one."
            )
        if extra:
            warnings.warn(
                f"{len(extra)} weights of the LoRA {self.path} are left out, such as {extra[0]}: "
                "they change a layer in full, and diffusers can add low-rank pairs alone. The "
                "rest counts.",
                stacklevel=4,
            )


class Traced(torch.Tensor):
    """A tensor that remembers which of a file's tensors it was made of."""

    keys: frozenset[str]
    file: AdapterTensors

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and give the result the keys of what it was computed from."""
        kwargs = kwargs or {}
        plain: Any = super().__torch_function__
        result = plain(func, types, args, kwargs)
        sources = [each for each in _tensors_in((args, kwargs)) if hasattr(each, "keys")]
        if not sources:
            return result
        keys, file = frozenset().union(*(each.keys for each in sources)), sources[0].file
        if func in _NUMBERS:
            file.told |= keys
        name = getattr(func, "__name__", "")
        is_in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        for made in (*_tensors_in(result), *(args[:1] if is_in_place else ())):
            made.keys, made.file = keys | getattr(made, "keys", frozenset()), file
        return result


class ConvertsWhole:
    """Mixed into a pipeline with a loader: its converter drops no tensor in silence."""

    @classmethod
    def lora_state_dict(cls, weights: Mapping[str, Any], **how: Any) -> Any:
        """Convert what was read of a file; anything else as diffusers does."""
        converted = super().lora_state_dict(weights, **how)  # type: ignore[misc]
        if not isinstance(weights, Mapping) or not weights:
            return converted
        file = getattr(next(iter(weights.values())), "file", None)
        if file is None:
            return converted
        several = converted if isinstance(converted, tuple) else (converted,)
        plain = untraced(file, several[0])
        rest = several[1:]
        if how.get("return_lora_metadata"):
            rest = (*rest[:-1], file.metadata or rest[-1] or alphas_of(file, plain))
        return (plain, *rest) if isinstance(converted, tuple) else plain


def untraced(file: AdapterTensors, converted: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return plain tensors; what none of them was made of is an error, or a warning."""
    plain: dict[str, torch.Tensor] = {}
    used: set[str] = set(file.told)
    file.converted.clear()
    for key, tensor in converted.items():
        keys: frozenset[str] = getattr(tensor, "keys", frozenset())
        used |= keys
        with torch._C.DisableTorchFunctionSubclass():
            plain[key] = tensor.as_subclass(torch.Tensor)
        if not any(kind in key for kind in (".lokr_", ".hada_")):  # these are put together anew
            file.converted[plain[key].data_ptr()] = keys
    file.check_used([k for k in file.tensors if k not in used], "are dropped by diffusers")
    if any(key.endswith(".lora_B.bias") for key in plain):  # then PEFT wants one of every layer
        for key in [key for key in plain if key.endswith(".lora_B.weight")]:
            bias = key.removesuffix("weight") + "bias"
            plain.setdefault(bias, plain[key].new_zeros(len(plain[key])))
    return plain


def alphas_of(file: AdapterTensors, converted: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Return PEFT's settings of an adapter whose alpha only the header tells, or None."""
    from diffusers.utils.peft_utils import get_peft_kwargs

    if any(key.endswith(".alpha") for key in file.tensors):
        return None
    ranks = {key: each.shape[1] for key, each in converted.items() if "lora_B.weight" in key}
    settings = {
        name: file.header[name] for name in ("alpha_pattern", "use_rslora") if file.header.get(name)
    }
    alpha = _number(file.header.get("lora_alpha", file.header.get("alpha")))
    if alpha is None or not ranks:
        trained = _number(file.header.get("ss_network_alpha"))
        if trained is not None and ranks and trained not in ranks.values():
            warnings.warn(
                f"The header of the LoRA {file.path} tells of an alpha of {trained:g}, and its "
                "tensors of none: it may be in them already, and is left out.",
                stacklevel=4,
            )
        return None
    found: dict[str, Any] = {}
    for prefix in {key.partition(".")[0] for key in ranks}:
        own = {
            key.removeprefix(f"{prefix}."): each
            for key, each in converted.items()
            if key.startswith(f"{prefix}.")
        }
        by_key = {f"^{key}": each.shape[1] for key, each in own.items() if "lora_B.weight" in key}
        settle: Any = get_peft_kwargs
        kwargs = settle(by_key, None, own)
        kwargs |= {"lora_alpha": alpha, "alpha_pattern": {}, **settings}
        found |= {f"{prefix}.{name}": value for name, value in kwargs.items()}
    return found


@contextmanager
def all_placed(file: AdapterTensors, pipeline: Any, name: str) -> Iterator[None]:
    """Raise AdapterError where a tensor of a file reaches no layer, or a layer lacks its tensor.

    What goes into a text encoder is loaded by transformers, which says itself what it lacks.
    """
    arrived: set[int] = set()
    unplaced: list[str] = []
    lacking: list[str] = []

    def before(model: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
        arrived.update(each.data_ptr() for each in state.values())

    its_own = re.compile(rf"(\.lora_\w+)\.{re.escape(name)}(?=\.|$)")

    def after(model: nn.Module, keys: Any) -> None:
        unplaced.extend(its_own.sub(r"\1", key) for key in keys.unexpected_keys)
        lacking.extend(its_own.sub(r"\1", key) for key in filter(its_own.search, keys.missing_keys))

    with ExitStack() as noting:
        for model in pipeline.components.values():
            if hasattr(model, "load_lora_adapter"):
                noting.callback(model.register_load_state_dict_pre_hook(before).remove)
                noting.callback(model.register_load_state_dict_post_hook(after).remove)
        yield
    if lacking:
        raise AdapterError(
            f"The LoRA {file.path} lacks {len(lacking)} tensors, such as "
            f"{lacking[0]}. Save or download it again."
        )
    if unplaced:
        raise AdapterError(
            f"{len(unplaced)} weights of the LoRA {file.path} found no place in the model, such as "
            f"{unplaced[0]}. It was most likely made for another model: "
            "pass one that was made for this one."
        )
    texts = _text_encoders_of(pipeline)
    lost = [
        key
        for address, keys in file.converted.items()
        if address not in arrived
        for key in sorted(keys)
        if not any(text in key or key.startswith("lora_te") for text in texts)
    ]
    file.check_used(dict.fromkeys(lost), "are for no part that adapters go into")


def respelled(file: AdapterTensors, pipeline: Any, prefix: str, denoiser: nn.Module) -> Any:
    """Return the file's tensors under keys that diffusers knows, as far as there are such.

    Args:
        file: The file.
        pipeline: It converts keys of other projects.
        prefix: What diffusers calls the denoiser in a file.
        denoiser: Whose layers the keys are of.
    """
    keys = list(file.tensors)
    layers = {name for name, _ in denoiser.named_modules()}
    count = sum(1 for key in keys if _HALF.fullmatch(key))
    as_they_are = {key: key for key in keys}
    if any(key.startswith(("text_encoder", "lora_te")) for key in keys):
        return file.tensors
    if _count_placed(file.tensors, prefix, layers) == count and all("lora_" in key for key in keys):
        return file.tensors
    best, most = file.tensors, 0
    spellings = [_by_layers(keys, prefix, layers), as_they_are, *_by_others(keys)]
    for spelling in filter(None, spellings):
        try:
            converted = _converted(pipeline, spelling, file)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError):
            continue
        placed = _count_placed(converted, prefix, layers)
        if placed > most:
            best, most = _under(file, spelling), placed
    return best


_PREFIXES = (
    "base_model.model.",
    "module.",
    "model.diffusion_model.",
    "diffusion_model.",
    "pipe.dit.",
    "dit.",
    "transformer.",
    "unet.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)


def _by_layers(keys: list[str], prefix: str, layers: set[str]) -> dict[str, str] | None:
    """Spell keys by the denoiser's own layers, however their names are put together."""
    flat: dict[str, str | None] = {}
    for known in layers:
        name = known.replace(".", "_")
        flat[name] = None if name in flat else known
    spelling = {}
    for key in keys:
        match = _HALF.fullmatch(key)
        module = str(match["module"]) if match else key.rpartition(".")[0]
        layer = next((found for t in _stripped(module) if (found := flat.get(_flat(t)))), None)
        if match is None:
            end = key.removeprefix(f"{module}.")
            if end in ("alpha", "lora_magnitude_vector") and layer is not None:
                spelling[key] = f"{prefix}.{layer}.{end}"
            continue
        if layer is None:
            return None
        half = "lora_A" if _place(match) else "lora_B"
        spelling[key] = f"{prefix}.{layer}.{half}.{match['kind']}"
    return spelling


def _by_others(keys: list[str]) -> list[dict[str, str]]:
    """Spell keys as other projects do, which diffusers converts: ComfyUI, and kohya's trainers."""
    dotted, flattened = {}, {}
    for key in keys:
        match = _HALF.fullmatch(key)
        module, _, end = key.rpartition(".")
        if match:
            module, end = match["module"], f"{match['half']}.{match['kind']}"
        name = list(_stripped(module))[-1]
        whole = re.sub(r"^blocks_(\d+)_(self_attn|cross_attn|ffn)_(\w+)$", r"blocks.\1.\2.\3", name)
        dotted[key] = f"diffusion_model.{whole}.{end}"
        flattened[key] = f"lora_unet_{_flat(name)}.{end}"
    return [dotted, flattened]


def _stripped(module: str) -> Iterator[str]:
    """Yield a module's name without the first of its prefixes, the second, and so on."""
    yield module
    for start in _PREFIXES:
        if module.startswith(start):
            yield from _stripped(module.removeprefix(start))
            return


def _under(file: AdapterTensors, spelling: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return tensors under other keys, with an alpha of the denoiser's own layers multiplied in."""
    named = {new: file.tensors[old] for old, new in spelling.items()}
    for key in [key for key in named if key.endswith(".alpha")]:
        down = f"{key.removesuffix('.alpha')}.lora_A.weight"
        if key.startswith(("transformer.", "unet.")) and down in named:
            alpha = named.pop(key).item()
            named[down] = named[down] * (alpha / named[down].shape[0])
    return named


def _converted(pipeline: Any, spelling: Mapping[str, str], file: AdapterTensors) -> Iterable[str]:
    """Return the keys that the pipeline's converter makes of others: no number is computed."""
    if not hasattr(pipeline, "lora_state_dict"):
        return spelling.values()
    stand_ins = {
        new: torch.ones(()) if file.tensors[old].ndim == 0 else file.tensors[old].to("meta")
        for old, new in spelling.items()
        if not (new.endswith(".alpha") and new.startswith(("transformer.", "unet.")))
    }
    # What the pipeline's own class makes of it: no tensor is asked for yet.
    made = super(ConvertsWhole, type(pipeline)).lora_state_dict(stand_ins)
    found: Iterable[str] = made[0] if isinstance(made, tuple) else made
    return found


def _count_placed(tensors: Iterable[str], prefix: str, layers: set[str]) -> int:
    """Count the halves of pairs that are for one of the layers."""
    found = (_HALF.fullmatch(key) for key in tensors)
    return sum(
        1
        for match in found
        if match
        and match["adapter"] is None
        and match["module"].startswith(f"{prefix}.")
        and match["module"].removeprefix(f"{prefix}.") in layers
    )


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _place(match: re.Match[str]) -> bool:
    """Whether a half comes first: it takes what the layer takes."""
    return match["half"].endswith(("lora_A", "down"))


def _other_half(half: str, key: str) -> str:
    pairs = [*_HALVES.items(), *((up, down) for down, up in _HALVES.items())]
    one, other = next(pair for pair in pairs if half.endswith(pair[0]))
    head, _, tail = key.rpartition(one)
    return f"{head}{other}{tail}"


def _number(text: object) -> float | None:
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _tensors_in(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors_in(each)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _text_encoders_of(pipeline: Any) -> list[str]:
    loaded = getattr(pipeline, "_lora_loadable_modules", ())
    return [name for name in loaded if name.startswith("text_encoder")]
