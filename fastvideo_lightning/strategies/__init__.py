"""How a model is spread over processes; only FSDP's strategy touches weights, the denoisers'.

Read `host_resident`, then `fsdp` and `context_parallel`; `launcher`, `watchdog` and `failures`
start processes, and end all of them where one fails.
"""

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.strategies.context_parallel import check_context, check_guidance
from fastvideo_lightning.strategies.fsdp import FSDPInferenceStrategy
from fastvideo_lightning.strategies.host_resident import HostResidentStrategy

__all__ = [
    "FSDPInferenceStrategy",
    "HostResidentStrategy",
    "check_context",
    "check_guidance",
    "make_strategy",
]


def make_strategy(config: OffloadConfig) -> FSDPInferenceStrategy | HostResidentStrategy:
    """Return the strategy that a configuration asks for."""
    if config.use_fsdp_inference:
        return FSDPInferenceStrategy(
            cpu_offload=config.dit_cpu_offload,
            pin_memory=config.pin_cpu_memory,
            context_parallel=config.context_parallel,
        )
    return HostResidentStrategy(
        context_parallel=config.context_parallel, guidance_parallel=config.guidance_parallel
    )
