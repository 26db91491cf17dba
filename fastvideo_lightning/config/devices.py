"""Whether the machine has the devices that a run asks for."""

import os
import sys

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def count_nodes() -> int:
    """Return over how many machines torchrun, `fabric run` or SLURM has started this run."""
    environment = os.environ
    if "LT_NUM_NODES" in environment:
        return int(environment["LT_NUM_NODES"])
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["WORLD_SIZE"]) // int(environment["LOCAL_WORLD_SIZE"])
    return int(environment.get("SLURM_NNODES", 1)) if "SLURM_NTASKS" in environment else 1


def check_devices(num_gpus: int, accelerator: str) -> str:
    """Return the accelerator that `auto` means, once the machine is known to have the devices.

    Raises:
        TypeError: If `num_gpus` is no whole number.
        ValueError: If there are fewer devices, or no such accelerator; or several are asked for in
            a notebook, which cannot start processes.
    """
    if isinstance(num_gpus, bool) or not isinstance(num_gpus, int):
        raise TypeError(f"num_gpus must be a whole number, got {num_gpus!r}. Pass num_gpus=1.")
    if num_gpus < 1:
        raise ValueError(f"num_gpus must be 1 or more, got {num_gpus}. Pass num_gpus=1.")
    if accelerator not in _ACCELERATORS:
        raise ValueError(
            f"accelerator must be one of {', '.join(_ACCELERATORS)}, got {accelerator!r}. "
            "Pass accelerator='auto'."
        )
    if num_gpus > 1 and hasattr(sys, "ps1"):
        raise ValueError(
            f"num_gpus={num_gpus} starts a process for each GPU from a script's file, which a "
            "notebook or a Python prompt has not: leave num_gpus out here, or write the code into "
            "a file and run that with python."
        )
    num_nodes = count_nodes()
    if num_gpus % num_nodes:
        raise ValueError(
            f"num_gpus counts the GPUs of all {num_nodes} machines and must be a multiple of that, "
            f"got {num_gpus}. Pass num_gpus={max(num_gpus // num_nodes, 1) * num_nodes}."
        )
    num_gpus //= num_nodes
    import torch

    if accelerator == "cpu":
        return "cpu"
    if accelerator == "mps":
        there = int(torch.backends.mps.is_available())
    else:
        there = torch.cuda.device_count()
    if accelerator == "auto" and not there and num_gpus == 1:
        return "cpu"
    if not there and accelerator != "auto":
        raise ValueError(
            f"accelerator={accelerator!r} asks for a GPU, and this machine has none. "
            "Pass accelerator='auto', which takes the CPU then."
        )
    if not there:
        raise ValueError(
            f"num_gpus={num_gpus} asks for GPUs, and this machine has none. Leave num_gpus out to "
            f"compute on the CPU, or pass accelerator='cpu' to share it among {num_gpus} processes."
        )
    if num_gpus > there:
        raise ValueError(
            f"num_gpus={num_gpus} asks for more GPUs than this machine has, which is {there}. "
            f"Pass num_gpus={there}."
        )
    return "mps" if accelerator == "mps" else "cuda"
