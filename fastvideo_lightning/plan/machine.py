"""Machine: what the hardware gives, as far as a prediction asks for it."""

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """Rates and sizes of a GPU, its link and its host.

    Attributes:
        name: Of the card.
        source: Where the figures are from: `measured here`, or the table of cards.
        memory_bytes: Device memory in all.
        link_bytes_per_s: Pinned host memory to the device.
        matmul_flops: Floating-point operations per second in large bf16 matrix products.
        attention_flops: The same in bf16 attention.
        memory_bytes_per_s: Device memory, read and write together.
        launch_s: Time the host takes to launch one kernel.
        cpu_flops: Of the host in bf16 matrix products, all cores.
        host_memory_bytes: Host memory in all; None where it is not known.
    """

    name: str
    source: str
    memory_bytes: int
    link_bytes_per_s: float
    matmul_flops: float
    attention_flops: float
    memory_bytes_per_s: float
    launch_s: float = 12e-6
    cpu_flops: float = 1.5e12
    host_memory_bytes: int | None = None
