"""OffloadConfig: where each part of a pipeline keeps its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from numbers import Real
from typing import Any, Self

from fastvideo_lightning.config.checks import check_count, check_known
from fastvideo_lightning.config.conflicts import check_combinations

CACHES = ("first_block", "taylorseer", "pyramid")
HOST_MEMORY = ("auto", "mapped", "pinned", "pageable", "courier", "disk")
READ_ON_THE_WAY = ("courier", "disk")
"""Kinds of host memory that are none."""

ON_OOM = ("raise", "replan")
SHARD_TRANSPORT = ("auto", "gather", "local")
WEIGHT_COMPRESSION = ("none", "lossless")


@dataclass(frozen=True)
class OffloadConfig:
    """Where each part of a pipeline keeps its weights, and where it computes.

    Attributes:
        dit_layerwise_offload: Stream the denoiser's blocks from host memory through device slots.
        use_fsdp_inference: Shard the denoiser over all ranks with FSDP2.
        dit_cpu_offload: With FSDP, keep the shards in host memory; without FSDP, no effect.
        text_encoder_cpu_offload: Keep the text encoder on the host and compute it there.
        image_encoder_cpu_offload: Have the image encoder on the device only during its call.
        vae_cpu_offload: Have the VAE on the device only while it encodes or decodes.
        pin_cpu_memory: Pin the host copies: faster transfers, but locked memory.
        text_encoder_layerwise_offload: Stream the text encoder instead of computing it on the CPU.
        dit_resident_blocks: How many of a streamed denoiser's blocks stay on the device, at least.
        num_slots: How many streamed blocks have device memory at the same time. 2 are enough where
            computing or copying takes clearly longer, 1 takes the sum of both.
        compile: Compile the denoisers' blocks.
        cuda_graphs: Have the GPU repeat a step by itself: for steps so small that launching them
            takes longest.
        pair_guidance: Have the calls of a denoiser in a step with guidance pass each streamed block
            together: half of the copies, the same bits. `auto`: where the plan says that a video is
            sooner by it, and the memory is there.
        weight_compression: `lossless` has streamed blocks in bf16 wait and travel in some 0.7 of
            their bytes and arrive with the same bits; `none` as they are.
        vae_tiling: Decode in tiles: less memory, other bits.
        vae_slicing: Decode the videos of a batch one by one.
        attention_backend: A name that diffusers knows, such as `flash` or `sage`.
        cache: A step-skipping cache of diffusers': `first_block`, `taylorseer` or `pyramid`;
            faster, other pixels.
        host_memory: `auto`, `mapped` (the checkpoint file itself is the host copy), `pinned`,
            `pageable`, `courier` (no host copy: the file is read on the way, through half a GiB of
            pinned buffers) or `disk` (the same past the page cache); without `pin_cpu_memory` it
            is pageable.
        shard_transport: How blocks stream on several GPUs: `gather` (each brings a part over its
            own link, and the parts are joined on the GPUs), `local` (each brings everything) or
            `auto`, the faster of the two.
        context_parallel: Processes that make each video together, each a part of it; the number of
            GPUs is a multiple.
        guidance_parallel: 2: two processes make each video together, each one of the two calls of a
            step with guidance; with `context_parallel` twice as many. The bits stay the same.
        gpu_memory_budget: GiB that may be reserved on the device, or `auto`: what is free, less a
            margin. The flags that were not passed are then chosen, see `docs/planning.md`.
        host_memory_budget: GiB that the process may hold for weights on the host, or `auto`: what
            cgroups and the machine leave, less a margin. What does not fit is read from its file on
            the way. Without it nothing is held that the host does not have.
        on_oom: When the device runs out of memory, `raise` or `replan`: make the video again with
            less on the device, twice at most.

    Raises:
        TypeError: If a flag is not a bool.
        ValueError: If a value is unknown, or two flags cannot be combined (see `conflicts`).
    """

    dit_layerwise_offload: bool = True
    use_fsdp_inference: bool = False
    dit_cpu_offload: bool = True
    text_encoder_cpu_offload: bool = True
    image_encoder_cpu_offload: bool = True
    vae_cpu_offload: bool = True
    pin_cpu_memory: bool = True
    text_encoder_layerwise_offload: bool = False
    dit_resident_blocks: int = 0
    num_slots: int = 2
    compile: bool = False
    cuda_graphs: bool = False
    pair_guidance: bool | str = False
    weight_compression: str = "none"
    vae_tiling: bool = False
    vae_slicing: bool = False
    attention_backend: str | None = None
    cache: str | None = None
    host_memory: str = "auto"
    shard_transport: str = "auto"
    context_parallel: int = 1
    guidance_parallel: int = 1
    gpu_memory_budget: float | str | None = None
    host_memory_budget: float | str | None = None
    on_oom: str = "raise"

    def __new__(cls, *args: Any, **flags: Any) -> Self:
        """Remember which flags are passed: a plan keeps those."""
        self = super().__new__(cls)
        named = (*list(cls.__dataclass_fields__)[: len(args)], *flags)
        object.__setattr__(self, "_given", frozenset(named))
        return self

    def __post_init__(self) -> None:
        if self.host_memory not in HOST_MEMORY:
            raise ValueError(
                f"host_memory must be one of {', '.join(HOST_MEMORY)}, got {self.host_memory!r}. "
                "Pass host_memory='auto'."
            )
        if self.shard_transport not in SHARD_TRANSPORT:
            raise ValueError(
                f"shard_transport must be one of {', '.join(SHARD_TRANSPORT)}, "
                f"got {self.shard_transport!r}. Pass shard_transport='auto'."
            )
        if self.weight_compression not in WEIGHT_COMPRESSION:
            raise ValueError(
                f"weight_compression must be one of {', '.join(WEIGHT_COMPRESSION)}, "
                f"got {self.weight_compression!r}. Pass weight_compression='lossless'."
            )
        if (
            self.host_memory in ("mapped", "pinned", *READ_ON_THE_WAY)
            and self.pin_cpu_memory is False
        ):
            raise ValueError(
                f"host_memory={self.host_memory!r} is pinned memory, which pin_cpu_memory=False "
                "forbids. Pass host_memory='pageable', or leave pin_cpu_memory on."
            )
        check_count("dit_resident_blocks", self.dit_resident_blocks, low=0)
        check_count("num_slots", self.num_slots, low=1)
        check_count("context_parallel", self.context_parallel, low=1)
        check_count("guidance_parallel", self.guidance_parallel, low=1)
        _check_budget("gpu_memory_budget", self.gpu_memory_budget, ", on a machine with a GPU,")
        _check_budget("host_memory_budget", self.host_memory_budget, "")
        self._check_host_budget()
        if self.on_oom not in ON_OOM:
            raise ValueError(
                f"on_oom must be one of {', '.join(ON_OOM)}, got {self.on_oom!r}. "
                "Pass on_oom='replan'."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(field.default, bool):
                continue
            if field.name == "pair_guidance" and value == "auto":
                continue
            if not isinstance(value, bool):
                values = "True or False"
                if field.name == "pair_guidance":
                    values = "True, False or 'auto'"
                raise TypeError(
                    f"{field.name} must be {values}, got {value!r}. "
                    f"Pass {field.name}=True or {field.name}=False."
                )
        self._check_acceleration()
        check_combinations(self)

    @property
    def num_processes_each(self) -> int:
        """Processes that make each video together."""
        return self.context_parallel * self.guidance_parallel

    @property
    def given(self) -> frozenset[str]:
        """Names of the flags that were passed, whether or not they differ from the default."""
        names: frozenset[str] = vars(self)["_given"]
        return names

    def _check_acceleration(self) -> None:
        backend = self.attention_backend
        if backend is not None and (not isinstance(backend, str) or not backend):
            raise TypeError(
                f"attention_backend must be a name, got {backend!r}. Pass one that diffusers "
                "knows, such as attention_backend='native'."
            )
        if self.cache is not None and self.cache not in CACHES:
            raise ValueError(
                f"cache must be one of {', '.join(CACHES)}, got {self.cache!r}. "
                "Pass cache='first_block', or leave it out."
            )

    @classmethod
    def from_mapping(cls, flags: Mapping[str, Any]) -> Self:
        """Make one from names and values; an unknown name is a ValueError with its nearest."""
        check_known(flags, [field.name for field in fields(cls)], cls.__name__)
        return cls(**flags)

    def _check_host_budget(self) -> None:
        if self.host_memory_budget is not None and self.host_memory != "auto":
            raise ValueError(
                f"host_memory_budget={self.host_memory_budget} cannot be combined with "
                f"host_memory={self.host_memory!r}: a budget chooses for each block where it "
                "waits. Leave one of the two out."
            )


def _check_budget(name: str, budget: object, needs: str) -> None:
    """Raise unless a budget is a number of GiB, `auto` or None."""
    wanted = f"{name} must be a number of GiB above 0, or 'auto'"
    if isinstance(budget, str) and budget != "auto":
        raise ValueError(
            f"{wanted}, got {budget!r}. Pass a number such as {name}=12, or{needs} 'auto'."
        )
    if isinstance(budget, bool) or not isinstance(budget, Real | str | None):
        raise TypeError(f"{wanted}, got {budget!r}. Pass one such as {name}=12.")
    if isinstance(budget, Real) and not (isfinite(budget) and float(budget) > 0):
        raise ValueError(f"{wanted}, got {budget!r}. Pass one such as {name}=12.")
