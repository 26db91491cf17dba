"""A model built without its weights, in a dtype, and seen by no other thread.

Note [Building unseen]
The libraries build on meta by switching the whole process for a while: torch's default dtype,
`nn.Module.register_parameter` and the functions of `torch.nn.init`. A video that another thread
makes meanwhile computes in another dtype, and two builds at once leave each other's switches
behind. Here all of it belongs to the thread that builds: a function mode gives new tensors the
dtype, and torch's own hook, which is registered once and asks each time which thread it is in,
brings new parameters to meta.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

META = torch.device("meta")

SPARE_ELEMENTS = 1 << 26
"""What a model may make beside its weights, such as tables of angles, at once."""

# Of the default dtype, whatever the arguments.
_FLOATING: set[Callable[..., Any]] = {
    *(torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye, torch.normal),
    *(torch.linspace, torch.logspace, torch.empty_strided, torch.scalar_tensor),
    *(torch.hann_window, torch.hamming_window, torch.blackman_window, torch.bartlett_window),
    *(torch.kaiser_window, torch.fft.fftfreq, torch.fft.rfftfreq),
}
# Of the default dtype where their numbers are floating.
_BY_NUMBERS: set[Callable[..., Any]] = {
    *(torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.arange, torch.range),
}
# Of as many elements as their numbers say.
_SIZED = _FLOATING | {torch.full, torch.arange, torch.range, torch.randint, torch.randperm}
_RANDOM: set[Callable[..., Any]] = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal),
    *(torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.random_),
    *(torch.Tensor.bernoulli_, torch.Tensor.exponential_, torch.Tensor.log_normal_),
}
_EXPLICIT: set[Callable[..., Any]] = {torch.Tensor.float, torch.Tensor.type, torch.load}
# Asked often, and of no concern here.
_PLAIN: set[Callable[..., Any]] = {
    *(torch.Tensor.dim, torch.Tensor.size, torch._C._set_grad_enabled),
}


class _Thread(threading.local):
    """What the running thread builds; nothing, in most."""

    build: "_Building | None" = None


_HERE = _Thread()


@contextmanager
def built_on_meta(dtype: torch.dtype, *, max_parameters: int, max_elements: int) -> Iterator[None]:
    """Have this thread's new parameters on meta, and what it computes in `dtype` by default.

    Buffers are computed for real. Parameters are not initialized, and nothing is drawn from torch's
    generators. See Note [Building unseen].

    Args:
        dtype: Takes the place of the default dtype.
        max_parameters: How many parameters there may be in all.
        max_elements: How many elements one tensor may have.

    Raises:
        OverflowError: If a model makes more than that.
    """
    with _Building(dtype, max_parameters, max_elements) as build:
        before, _HERE.build = _HERE.build, build
        try:
            yield
        finally:
            _HERE.build = before


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Have what this thread computes in `dtype` by default, as under torch's default dtype."""
    with _DefaultDtype(dtype):
        yield


class _DefaultDtype(TorchFunctionMode):
    """Torch's default dtype, for one thread."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._default = torch.get_default_dtype()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.call(func, args, {} if kwargs is None else kwargs)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of torch's as under another default dtype."""
        if self.dtype == self._default or func in _EXPLICIT:
            return func(*args, **kwargs)
        if func in _FLOATING:
            if kwargs.get("dtype") is None and not (args and isinstance(args[0], torch.Tensor)):
                kwargs = {**kwargs, "dtype": self.dtype}
            return func(*args, **kwargs)
        made = func(*args, **kwargs)
        if not isinstance(made, torch.Tensor) or made.dtype != self._default:
            return made
        if _has_floating(args, kwargs) or _has_dtype(args, kwargs):
            return made
        if func in _BY_NUMBERS:
            return func(*args, **{**kwargs, "dtype": self.dtype}) if _is_python(args) else made
        # Of integers: they are brought to the default dtype first, and computed with then.
        made = func(*map(self._widen, args), **{k: self._widen(v) for k, v in kwargs.items()})
        return made.to(self.dtype)

    def _widen(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype not in (torch.bool, self.dtype):
            return value.to(self.dtype)
        return value


class _Building(_DefaultDtype):
    """A thread's default dtype, and the parameters that it makes."""

    def __init__(self, dtype: torch.dtype, max_parameters: int, max_elements: int) -> None:
        super().__init__(dtype)
        self._left = max_parameters
        self._max_elements = max_elements
        self._generator = torch.Generator("cpu")

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _PLAIN:
            return func(*args, **kwargs)
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, torch.Tensor):
            if target.is_meta:
                if _is_in_place(func):
                    return target  # no weight is initialized
                if func is torch.Tensor.__bool__:
                    return False  # "is any of them out of bounds?"
        elif func in _SIZED:
            self._check_size(func, args, kwargs)
        elif func is torch.tensor and target == [] and _asks_for_device(sys._getframe(2)):
            return torch.empty(0, device=META)
        if func in _RANDOM and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self._generator}
        return super().call(func, args, kwargs)

    def to_meta(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return a new parameter as one on meta."""
        self._left -= 1
        if self._left < 0:
            raise OverflowError("more parameters than weights are stored")
        with torch._C.DisableTorchFunction():
            if parameter.is_meta:
                return parameter
            kind: Any = type(parameter)
            made: nn.Parameter = kind(
                torch.empty_like(parameter, device=META), requires_grad=parameter.requires_grad
            )
        if parameter.__dict__:
            made.__dict__.update(parameter.__dict__)
        return made

    def _check_size(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse a new tensor that is too large before memory is taken for it."""
        is_shape = bool(args) and isinstance(args[0], tuple)
        numbers = args[0] if is_shape else [*_numbers(args), *_numbers(kwargs.values())]
        if prod(numbers) > self._max_elements:
            made = func(*args, **{**kwargs, "device": META})
            if made.numel() > self._max_elements:
                raise OverflowError(f"a tensor of shape {list(made.shape)}")


def _bring_to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
    build = _HERE.build
    return None if build is None or parameter is None else build.to_meta(parameter)


register_module_parameter_registration_hook(_bring_to_meta)


def _is_in_place(func: Any) -> bool:
    name: str = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _asks_for_device(frame: Any) -> bool:
    """Whether transformers asks on which device it builds: on meta it initializes nothing."""
    return bool(frame.f_code.co_name == "get_torch_context_manager_or_global_device")


def _numbers(values: Any) -> Iterator[float]:
    """Yield how many elements there would be along each dimension, or more."""
    for value in values:
        if isinstance(value, int | float) and value > 1:
            yield value
        elif isinstance(value, list | tuple):
            yield from _numbers(value)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _has_floating(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return any(
        tensor.is_floating_point() or tensor.is_complex()
        for tensor in (*_tensors(args), *_tensors(kwargs.values()))
    )


def _has_dtype(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))


def _is_python(args: Sequence[Any]) -> bool:
    """Whether numbers are Python's own, which have no dtype; NumPy's keep theirs."""
    value = args[0] if args else None
    while isinstance(value, list | tuple):
        value = value[0] if value else 0.0
    return value is None or type(value) in (int, float, bool)
