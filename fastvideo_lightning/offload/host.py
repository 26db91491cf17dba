"""HostSlab: the host master of a unit, exact in size, pinned where the system allows it.

torch's pinned allocator rounds every block up to a power of two, which costs half as much again for
a large model. A slab is anonymous memory of just the size that is needed, registered with the
driver.
"""

import mmap
import warnings

import torch

from fastvideo_lightning.offload.layout import SlabLayout


class HostSlab:
    """One unit's bytes on the host.

    Every tensor of the slab has a storage of its own: it is an ordinary host tensor that can be
    pickled or kept after the slab is closed, and the memory lives as long as any of them.

    Args:
        layout: where the tensors lie.

    Attributes:
        buffer: ``[layout.size_bytes] uint8``, all of it, as one copy moves it.
        views: the tensors, in the order of ``layout.specs``.
        pinned: whether the memory is registered for direct copies to a CUDA device.
    """

    def __init__(self, layout: SlabLayout) -> None:
        self.layout = layout
        self.pinned = False
        memory = _anonymous_memory(layout.size_bytes)
        self.buffer = torch.frombuffer(memory, dtype=torch.uint8, count=layout.size_bytes)
        self.views = [
            torch.frombuffer(
                memory, dtype=spec.dtype, count=spec.shape.numel(), offset=offset
            ).as_strided(spec.shape, spec.stride)
            if spec.size_bytes
            else torch.empty(spec.shape, dtype=spec.dtype)
            for spec, offset in zip(layout.specs, layout.offsets, strict=True)
        ]

    def pin(self) -> None:
        """Register the memory with the CUDA driver.

        Raises:
            RuntimeError: the system refuses (a locked-memory limit, a container, no memory).
        """
        if self.pinned or not self.layout.size_bytes:
            return
        code = torch.cuda.cudart().cudaHostRegister(
            self.buffer.data_ptr(), self.layout.size_bytes, 0
        )
        if int(code) != 0:
            raise RuntimeError(f"cudaHostRegister of {self.layout.size_bytes} bytes: {code}")
        self.pinned = True

    def close(self) -> None:
        """Take back the registration. No copy may be in flight; the tensors stay valid."""
        if self.pinned:
            self.pinned = False
            torch.cuda.cudart().cudaHostUnregister(self.buffer.data_ptr())


class HostStore:
    """All host masters of an engine: allocates them alike and knows how much they hold.

    Args:
        device: the device that the slabs are copied to; only CUDA memory can be pinned for.
    """

    def __init__(self, device: torch.device) -> None:
        self._pins = device.type == "cuda"
        self.slabs: list[HostSlab] = []

    @property
    def size_bytes(self) -> int:
        """Bytes that the slabs hold on the host."""
        return sum(slab.layout.size_bytes for slab in self.slabs)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of them that are pinned."""
        return sum(slab.layout.size_bytes for slab in self.slabs if slab.pinned)

    def allocate(self, layout: SlabLayout) -> HostSlab:
        """A slab for ``layout``, not yet filled and not yet pinned."""
        slab = HostSlab(layout)
        self.slabs.append(slab)
        return slab

    def pin(self, slab: HostSlab) -> None:
        """Pin a filled slab: registering memory that was touched already is the fast way.

        Where the system refuses, this slab and all later ones stay pageable, with one warning.
        """
        if not self._pins:
            return
        try:
            slab.pin()
        except RuntimeError as error:
            self._pins = False
            warnings.warn(
                f"The system refuses to pin host memory ({error}). Weights are copied from "
                "pageable memory: the results are the same, the copies slower. Raise the "
                "locked-memory limit (`ulimit -l unlimited`), or pass pin_cpu_memory=False.",
                stacklevel=2,
            )

    def free(self, slab: HostSlab) -> None:
        """Close a slab and forget it."""
        slab.close()
        self.slabs.remove(slab)


def _anonymous_memory(size_bytes: int) -> mmap.mmap:
    """Zeroed pages of just this size, huge ones where the kernel gives them."""
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
