"""Machine: what the hardware gives, as far as a prediction asks for it.

A small table of cards, for planning without the card at hand.

Memory, memory rate and dense bf16 tensor rate (fp32 accumulate) are from the vendor's data sheets
and architecture whitepapers:
https://www.nvidia.com/en-us/data-center/h200/, .../h100/, .../a100/, .../l40s/, .../l4/, .../t4/;
"NVIDIA Ada GPU Architecture" and "NVIDIA RTX Blackwell GPU Architecture" (appendix A),
"NVIDIA Ampere GA102 GPU Architecture" (appendix A).
A link gives about 0.86 of its nominal rate to pinned copies: 55.5 GB/s were measured on an H200
(PCIe 5.0 x16: 64 GB/s), see `benchmarks/results`.
"""

from dataclasses import dataclass, replace

from fastvideo_lightning.config import nearest_name

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


# Nominal rate of 16 lanes, and the share of it that pinned copies reach.
PCIE_BYTES_PER_S = {3: 16e9, 4: 32e9, 5: 64e9}
LINK_SHARE = 0.86
# Shares of the tensor rate that a denoiser's matrix products and attention reach, and of the memory
# rate its other operations: fitted to the steps measured on an H200, see `benchmarks/results`.
MATMUL_SHARE = 0.79
ATTENTION_SHARE = 0.61
MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Card:
    """A line of a data sheet.

    Attributes:
        memory_gib: Device memory.
        pcie: Generation of its 16 lanes.
        tflops: Dense bf16 tensor rate with fp32 accumulation, in 10^12 per second (fp16 on cards
            without bf16).
        memory_gb_per_s: Device memory rate, in 10^9 bytes per second.
    """

    memory_gib: float
    pcie: int
    tflops: float
    memory_gb_per_s: float


CARDS = {
    "H200": Card(140, 5, 989, 4800),
    "H100": Card(79, 5, 989, 3350),
    "H100 PCIe": Card(79, 5, 756, 2000),
    "B200": Card(179, 5, 2250, 8000),
    "A100 80GB": Card(79, 4, 312, 2039),
    "A100 40GB": Card(39.5, 4, 312, 1555),
    "L40S": Card(44.5, 4, 362, 864),
    "L4": Card(22, 4, 121, 300),
    "A10": Card(22, 4, 125, 600),
    "T4": Card(14.6, 3, 65, 320),
    "V100 32GB": Card(31.7, 3, 125, 900),
    "RTX 6000 Ada": Card(47.5, 4, 364, 960),
    "RTX A6000": Card(47.5, 4, 155, 768),
    "RTX PRO 6000": Card(95, 5, 504, 1792),
    "RTX 5090": Card(31.4, 5, 210, 1792),
    "RTX 5080": Card(15.5, 5, 113, 960),
    "RTX 5070 Ti": Card(15.5, 5, 88, 896),
    "RTX 4090": Card(23.6, 4, 165, 1008),
    "RTX 4080": Card(15.6, 4, 97.5, 717),
    "RTX 4070 Ti": Card(11.6, 4, 80, 504),
    "RTX 4060 Ti": Card(15.6, 4, 44, 288),
    "RTX 3090": Card(23.6, 4, 71, 936),
    "RTX 3080": Card(9.6, 4, 60, 760),
    "RTX 3060": Card(11.6, 4, 25, 360),
}


def find_card(name: str) -> Machine:
    """Return the machine that a card's name stands for.

    Raises:
        ValueError: If the table has no such card; names the nearest and all that it has.
    """
    words = {_plain(known): known for known in CARDS}
    known = words.get(_plain(name))
    if known is None:
        near = nearest_name(_plain(name), words)
        hint = f"Did you mean {words[near]!r}? " if near else ""
        raise ValueError(
            f"There is no card {name!r} in the table. {hint}Known are: {', '.join(CARDS)}."
        )
    card = CARDS[known]
    return Machine(
        name=known,
        source="table of cards",
        memory_bytes=round(card.memory_gib * GIB),
        link_bytes_per_s=PCIE_BYTES_PER_S[card.pcie] * LINK_SHARE,
        matmul_flops=card.tflops * 1e12 * MATMUL_SHARE,
        attention_flops=card.tflops * 1e12 * ATTENTION_SHARE,
        memory_bytes_per_s=card.memory_gb_per_s * 1e9 * MEMORY_SHARE,
    )


def match_card(device_name: str) -> Machine | None:
    """Return the machine for what a driver calls its card, or None for one not in the table."""
    words = set(_words(device_name))
    fitting = [known for known in CARDS if words.issuperset(_words(known))]
    # What a laptop's card has of its namesake's figures, the name does not tell.
    if not fitting or "laptop" in words:
        return None
    return find_card(max(fitting, key=len))


def _words(name: str) -> list[str]:
    return name.lower().replace("-", " ").replace("_", " ").split()


def _plain(name: str) -> str:
    makers = ("nvidia", "geforce", "gpu", "tesla")
    return "".join(word for word in _words(name) if word not in makers)
