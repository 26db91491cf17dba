"""What the source of a weight means for its place in memory."""

from collections.abc import Mapping, Sequence

import torch

from fastvideo_lightning.offload.mapped_file import find_in_file
from fastvideo_lightning.offload.tensors.bindings import TensorBinding
from fastvideo_lightning.offload.tensors.layout import TensorSpec
from fastvideo_lightning.offload.tensors.leaves import leaves_of
from fastvideo_lightning.offload.tensors.sources import FileBytes, StoredBytes, WeightSource


def source_spec(
    source: WeightSource, run_device: torch.device, device: torch.device | None = None
) -> TensorSpec:
    """The spec of a tensor that is yet to be read.

    Args:
        source: where it lies.
        run_device: the device of the run, which settles the dtype.
        device: where the tensor computes, by default there; on the CPU it keeps its file's phase.
    """
    spec = TensorSpec.contiguous(source.shape, source.dtype_on(run_device))
    plain = source.path is not None and spec.dtype == source.stored_dtype
    return spec.at(source.offset) if plain and (device or run_device).type == "cpu" else spec


def find_source(binding: TensorBinding, sources: Mapping[str, WeightSource]) -> WeightSource:
    """The source of a tensor on meta, under any of its names.

    Raises:
        RuntimeError: there is none.
    """
    for name in binding.names:
        if name in sources:
            return sources[name]
    raise RuntimeError(
        f"{binding.fqn} is on the meta device and no checkpoint says where its bytes are. Load "
        "the module with VideoModule.from_pretrained(...), or give it real weights first."
    )


def find_in_files(bindings: Sequence[TensorBinding]) -> dict[torch.Tensor, FileBytes | None]:
    """Where the leaves of tensors that are in memory lie in files that are mapped for them."""
    there = [b for b in bindings if not b.tensor.is_meta]
    return {leaf: find_in_file(leaf) for b in there for leaf in leaves_of(b)}


def file_position(source: StoredBytes | None) -> tuple[str, int]:
    """A sort key that puts weights in the order of their files."""
    if source is None or source.path is None:
        return "", 0
    return str(source.path), source.offset
