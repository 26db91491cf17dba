"""What compiling, caches and CUDA graphs change of a denoiser's work.

The shares of compiled blocks are from Wan 1.3B at 1, 17 and 81 frames on an H100, and hold on an
H200, see `benchmarks/results/streaming-wan-1.3b-compiled.md`.
"""

from dataclasses import replace

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.plan.cost import Work

# A compiled block makes one kernel of several: so much of the traffic, of the launches and of what
# is alive at once is left.
COMPILED_TRAFFIC, COMPILED_KERNELS, COMPILED_ACTIVATIONS = 0.38, 0.6, 0.5
# The compiler times its kernels on the device, and what it allocates for that stays reserved: 71
# to 124 MB where a step compiled, and nothing where the kernels were there already.
COMPILING_BYTES = 120 << 20


def under_flags(work: Work, config: OffloadConfig) -> Work:
    """Return a denoiser's work as the flags change it."""
    if config.cache is not None:
        work = replace(work, kept_bytes=work.cached_bytes.get(config.cache, 0))
    if config.compile:
        work = replace(
            work,
            activation_bytes=round(COMPILED_ACTIVATIONS * work.activation_bytes),
            held_bytes=round(COMPILED_ACTIVATIONS * work.held_bytes),
            traffic_bytes=COMPILED_TRAFFIC * work.traffic_bytes,
            num_kernels=round(COMPILED_KERNELS * work.num_kernels),
            compiling_bytes=COMPILING_BYTES,
        )
    if config.cuda_graphs:
        work = replace(work, num_kernels=0, kept_bytes=work.kept_bytes + work.held_bytes)
    return work
