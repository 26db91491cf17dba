"""Machine: what the hardware gives, as far as a prediction asks for it."""

from dataclasses import dataclass, replace

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
        cache_bytes_per_s: What several threads read from the page cache.
        disk_bytes_per_s: What they read past it.
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
    cache_bytes_per_s: float = 16e9
    disk_bytes_per_s: float = 2e9

    def with_host(
        self,
        memory_gib: float | None = None,
        disk_gb_per_s: float | None = None,
        link_gb_per_s: float | None = None,
    ) -> "Machine":
        """The same card in another host: what is not None takes the place of what is known.

        Args:
            memory_gib: Memory of the host.
            disk_gb_per_s: What its disk reads, in 10^9 bytes per second.
            link_gb_per_s: What its memory gives to the device, likewise.
        """
        found = {
            "host_memory_bytes": None if memory_gib is None else round(memory_gib * GIB),
            "disk_bytes_per_s": None if disk_gb_per_s is None else disk_gb_per_s * 1e9,
            "link_bytes_per_s": None if link_gb_per_s is None else link_gb_per_s * 1e9,
        }
        return replace(self, **{name: value for name, value in found.items() if value is not None})
