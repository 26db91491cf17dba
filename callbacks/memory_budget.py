"""MemoryBudget: the device allocator keeps to a budget, and stages do not add up."""

import lightning as L
import torch

GIB = 1 << 30


class MemoryBudget:
    """Caps what the device allocator may reserve, and empties its cache between stages.

    A stage's activations stay in the allocator's cache when the stage is over, in pieces that the
    next one may have no use for. The workspace of the matrix library lies apart from them: taken in
    the middle of a step it would split a large piece for good. Nothing happens on a device other
    than CUDA.

    Args:
        budget_gib: GiB that may be reserved. Asking for more raises `torch.OutOfMemoryError`, after
            the allocator has given back what it only kept.
    """

    def __init__(self, budget_gib: float) -> None:
        self.budget_gib = budget_gib
        self._device: torch.device | None = None

    def __repr__(self) -> str:
        return f"MemoryBudget({self.budget_gib:.4g})"

    def on_after_setup(self, fabric: L.Fabric) -> None:
        """Cap the allocator."""
        if fabric.device.type == "cuda":
            self._device = fabric.device
            total = torch.cuda.get_device_properties(self._device).total_memory
            share = min(self.budget_gib * GIB / total, 1.0)
            torch.cuda.set_per_process_memory_fraction(share, self._device)

    def on_predict_batch_start(self) -> None:
        """Give back what the stage before has left in the cache."""
        self._empty_cache()
        if self._device is not None:
            take_workspace(self._device)

    def on_denoise_step_start(self, step: int) -> None:
        """The same, before the first step."""
        if step == 0:
            self._empty_cache()

    def on_denoise_step_end(self, step: int, num_steps: int) -> None:
        """The same, after the last step."""
        if step + 1 == num_steps:
            self._empty_cache()

    def teardown(self) -> None:
        """Take the cap away."""
        device, self._device = self._device, None
        if device is not None:
            torch.cuda.set_per_process_memory_fraction(1.0, device)

    def _empty_cache(self) -> None:
        if self._device is not None:
            torch.cuda.empty_cache()


def take_workspace(device: torch.device) -> None:
    """Let the matrix library take its workspace now, while no piece of the cache is free."""
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    torch.addmm(ones[0], ones, ones)
    torch.mm(ones, ones)
