"""Results of a call that lie in a slot, which the next block's weights are about to overwrite.

A block may return one of its weights, or a view of one. The caller then gets a copy with the
strides and the alignment of the view, for kernels choose their code by these.
"""

import torch
from torch import nn
from torch.utils._pytree import tree_any, tree_map

from fastvideo_lightning.offload.tensors.layout import ALIGNMENT_BYTES
from fastvideo_lightning.offload.tensors.leaves import is_plain


def apart_from(memory: torch.Tensor, result: object) -> object:
    """A result in which tensors that lie in ``memory`` are replaced by copies."""
    if isinstance(result, torch.Tensor):
        return _copied(result, memory) if lies_in(result, memory) else result
    if result is None or not tree_any(lambda leaf: _reaches(leaf, memory), result):
        return result
    return tree_map(lambda leaf: _leaf_apart(leaf, memory), result)


def lies_in(leaf: object, memory: torch.Tensor) -> bool:
    """Whether a tensor is a view of ``memory``."""
    if not isinstance(leaf, torch.Tensor) or leaf.device != memory.device or not memory.numel():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(leaf):
        return lies_in(torch._C._functorch.get_unwrapped(leaf), memory)
    if hasattr(leaf, "__tensor_flatten__"):
        names, _ = leaf.__tensor_flatten__()
        return any(lies_in(getattr(leaf, name), memory) for name in names)
    if leaf.layout is not torch.strided:
        return False
    begin = leaf.data_ptr() - memory.data_ptr()
    return leaf.numel() > 0 and 0 <= begin < memory.numel()


def _tensors_of(leaf: object) -> dict[str, torch.Tensor]:
    """The attributes of an object that carries tensors, such as a VAE's latent distribution."""
    if isinstance(leaf, nn.Module | torch.Tensor | type):
        return {}
    values = getattr(leaf, "__dict__", {})
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _reaches(leaf: object, memory: torch.Tensor) -> bool:
    if lies_in(leaf, memory):
        return True
    return any(lies_in(value, memory) for value in _tensors_of(leaf).values())


def _leaf_apart(leaf: object, memory: torch.Tensor) -> object:
    if isinstance(leaf, torch.Tensor):
        return _copied(leaf, memory) if lies_in(leaf, memory) else leaf
    for name, value in _tensors_of(leaf).items():
        if lies_in(value, memory):
            setattr(leaf, name, _copied(value, memory))
    return leaf


def _copied(view: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    wraps = torch._C._functorch.is_functorch_wrapped_tensor(view)
    if wraps or not is_plain(view) or view.is_conj() or view.is_neg():
        return view.clone()
    first = (view.data_ptr() - memory.data_ptr()) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    offset = (view.data_ptr() - memory.data_ptr() - first) // view.itemsize
    last = sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True))
    end = first + (offset + last + 1) * view.itemsize
    own = torch.empty(0, dtype=view.dtype, device=view.device).set_(
        memory[first:end].clone().untyped_storage(), offset, view.shape, view.stride()
    )
    return own.requires_grad_(view.requires_grad)
