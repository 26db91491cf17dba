"""OffloadConfig: where each part of a pipeline keeps its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from fastvideo_lightning.config.names import check_known

HOST_MEMORY = ("auto", "mapped", "pinned", "pageable")


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
        dit_resident_blocks: So many of a streamed denoiser's blocks, at least, stay on the device.
        compile: Compile the denoisers' blocks.
        vae_tiling: Decode in tiles: less memory, other bits.
        host_memory: `auto`, `mapped` (the checkpoint file itself is the host copy), `pinned` or
            `pageable`; without `pin_cpu_memory` it is pageable.

    Raises:
        TypeError: If a flag is not a bool.
        ValueError: If `use_fsdp_inference` meets `dit_layerwise_offload`, or `pin_cpu_memory=False`
            a kind of host memory that is pinned.
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
    compile: bool = False
    vae_tiling: bool = False
    host_memory: str = "auto"

    def __post_init__(self) -> None:
        if self.host_memory not in HOST_MEMORY:
            raise ValueError(
                f"host_memory must be one of {', '.join(HOST_MEMORY)}, got {self.host_memory!r}. "
                "Pass host_memory='auto'."
            )
        if self.host_memory in ("mapped", "pinned") and self.pin_cpu_memory is False:
            raise ValueError(
                f"host_memory={self.host_memory!r} is pinned memory, which pin_cpu_memory=False "
                "forbids. Pass host_memory='pageable', or leave pin_cpu_memory on."
            )
        blocks = self.dit_resident_blocks
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 0:
            raise (ValueError if isinstance(blocks, int) else TypeError)(
                f"dit_resident_blocks must be a whole number, 0 or more, got {blocks!r}. "
                "Pass one such as dit_resident_blocks=8."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("host_memory", "dit_resident_blocks"):
                continue
            if not isinstance(value, bool):
                raise TypeError(
                    f"{field.name} must be True or False, got {value!r}. "
                    f"Pass {field.name}=True or {field.name}=False."
                )
        if self.use_fsdp_inference and self.dit_layerwise_offload:
            raise ValueError(
                "dit_layerwise_offload=True cannot be combined with use_fsdp_inference=True: "
                "FSDP already moves the denoiser's weights layer by layer. "
                "Pass dit_layerwise_offload=False, or leave FSDP off."
            )

    @classmethod
    def from_mapping(cls, flags: Mapping[str, Any]) -> Self:
        """Make one from names and values; an unknown name is a ValueError with its nearest."""
        check_known(flags, [field.name for field in fields(cls)], cls.__name__)
        return cls(**flags)
