"""Machine: what the hardware gives, as far as a prediction asks for it.

A table of the cards that people have, Turing and later, for planning without the card at hand.

Lanes, memory, memory rate and dense bf16 tensor rate (fp32 accumulate) are from the vendor's pages:

- GeForce: https://www.nvidia.com/en-us/geforce/graphics-cards/compare/ and the page of each card,
  which names its lanes where it has fewer than 16; the appendices "A" of "NVIDIA Turing GPU
  Architecture", "NVIDIA Ampere GA102 GPU Architecture", "NVIDIA Ada GPU Architecture" and "NVIDIA
  RTX Blackwell GPU Architecture". Where these give no tensor rate for a card, it is twice its fp32
  rate (four times for Turing's RTX 20), as for those that they have.
- RTX PRO, RTX Ada, RTX A and Quadro RTX: the data sheet of each, named like "RTX 4000 Ada
  Generation datasheet"; the tensor rate is that of the sheet without sparsity, an eighth of the
  sheet's fp4 rate for RTX PRO.
- Data center: https://www.nvidia.com/en-us/data-center/ and below it h200/, h100/, a100/, l40s/,
  l4/, a10/, a30/, a40/, a2/, tesla-t4/ with their data sheets.

Memory is what a driver gives of it: less than the name says, and with error correction less again.
How much of these rates is reached is said in the table "Constants" of `docs/planning.md`.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

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
        found: dict[str, Any] = {
            "host_memory_bytes": None if memory_gib is None else round(memory_gib * GIB),
            "disk_bytes_per_s": None if disk_gb_per_s is None else disk_gb_per_s * 1e9,
            "link_bytes_per_s": None if link_gb_per_s is None else link_gb_per_s * 1e9,
        }
        return replace(self, **{name: value for name, value in found.items() if value is not None})


PCIE_BYTES_PER_S = {3: 16e9, 4: 32e9, 5: 64e9}  # of 16 lanes, nominal
# Each is a row of the table "Constants" in `docs/planning.md`.
LINK_SHARE = 0.86  # of the nominal rate, by pinned copies
MATMUL_SHARE = 0.79  # of the tensor rate, by a denoiser's matrix products
ATTENTION_SHARE = 0.61  # of the tensor rate, by its attention
MEMORY_SHARE = 0.9  # of the memory rate, by its other operations


@dataclass(frozen=True)
class Card:
    """A line of a data sheet.

    Attributes:
        memory_gib: Device memory.
        pcie: Generation of its lanes.
        tflops: Dense bf16 tensor rate with fp32 accumulation, in 10^12 per second (fp16 on cards
            without bf16).
        memory_gb_per_s: Device memory rate, in 10^9 bytes per second.
        lanes: Of its link.
    """

    memory_gib: float
    pcie: int
    tflops: float
    memory_gb_per_s: float
    lanes: int = 16

    @property
    def link_bytes_per_s(self) -> float:
        """What its lanes give to pinned copies."""
        return PCIE_BYTES_PER_S[self.pcie] * self.lanes / 16 * LINK_SHARE


CARDS = {
    "H200": Card(140, 5, 989, 4800),
    "H200 NVL": Card(140, 5, 836, 4800),
    "H100": Card(79, 5, 989, 3350),
    "H100 PCIe": Card(79, 5, 756, 2000),
    "H100 NVL": Card(93, 5, 836, 3938),
    "H800": Card(79, 5, 989, 3350),
    "H20": Card(95, 5, 148, 4000),
    "B200": Card(179, 5, 2250, 8000),
    "A100 80GB": Card(79, 4, 312, 2039),
    "A100 40GB": Card(39.5, 4, 312, 1555),
    "A800 80GB": Card(79, 4, 312, 2039),
    "A800 40GB": Card(39.5, 4, 312, 1555),
    "A40": Card(44.5, 4, 150, 696),
    "A30": Card(23.5, 4, 165, 933),
    "A10": Card(22, 4, 125, 600),
    "A10G": Card(22, 4, 70, 600),
    "A2": Card(14.6, 4, 18, 200, lanes=8),
    "L40S": Card(44.5, 4, 362, 864),
    "L40": Card(44.5, 4, 181, 864),
    "L20": Card(44.5, 4, 119, 864),
    "L4": Card(22, 4, 121, 300),
    "T4": Card(14.6, 3, 65, 320),
    "V100 32GB": Card(31.7, 3, 125, 900),
    "V100 16GB": Card(15.7, 3, 125, 900),
    "RTX PRO 6000": Card(95, 5, 504, 1792),
    "RTX PRO 6000 Max-Q": Card(95, 5, 439, 1792),
    "RTX PRO 6000 Server": Card(95, 5, 480, 1597),
    "RTX PRO 5000 48GB": Card(47, 5, 258, 1344),
    "RTX PRO 5000 72GB": Card(71, 5, 258, 1344),
    "RTX PRO 4500": Card(31.4, 5, 211, 896),
    "RTX PRO 4000": Card(23.5, 5, 156, 672),
    "RTX PRO 4000 SFF": Card(23.5, 5, 96, 432, lanes=8),
    "RTX PRO 2000": Card(15.5, 5, 68, 288, lanes=8),
    "RTX 6000 Ada": Card(47.5, 4, 364, 960),
    "RTX 5880 Ada": Card(47.5, 4, 277, 960),
    "RTX 5000 Ada": Card(31.5, 4, 261, 576),
    "RTX 4500 Ada": Card(23.5, 4, 158, 432),
    "RTX 4000 Ada": Card(19.5, 4, 107, 360),
    "RTX 4000 SFF Ada": Card(19.5, 4, 77, 280),
    "RTX 2000 Ada": Card(15.6, 4, 48, 224, lanes=8),
    "RTX A6000": Card(47.5, 4, 155, 768),
    "RTX A5500": Card(23.6, 4, 136, 768),
    "RTX A5000": Card(23.6, 4, 111, 768),
    "RTX A4500": Card(19.6, 4, 95, 640),
    "RTX A4000": Card(15.6, 4, 77, 448),
    "RTX A2000 6GB": Card(5.6, 4, 32, 288),
    "RTX A2000 12GB": Card(11.6, 4, 32, 288),
    "Quadro RTX 8000": Card(47.5, 3, 130, 672),
    "Quadro RTX 6000": Card(23.6, 3, 130, 672),
    "Quadro RTX 5000": Card(15.6, 3, 89, 448),
    "Quadro RTX 4000": Card(7.6, 3, 57, 416),
    "RTX 5090": Card(31.4, 5, 210, 1792),
    "RTX 5090 D": Card(31.4, 5, 148, 1792),
    "RTX 5080": Card(15.5, 5, 113, 960),
    "RTX 5070 Ti": Card(15.5, 5, 88, 896),
    "RTX 5070": Card(11.6, 5, 62, 672),
    "RTX 5060 Ti 8GB": Card(7.6, 5, 47, 448, lanes=8),
    "RTX 5060 Ti 16GB": Card(15.5, 5, 47, 448, lanes=8),
    "RTX 5060": Card(7.6, 5, 38, 448, lanes=8),
    "RTX 5050": Card(7.6, 5, 26, 320, lanes=8),
    "RTX 4090": Card(23.6, 4, 165, 1008),
    "RTX 4090 D": Card(23.6, 4, 147, 1008),
    "RTX 4080 SUPER": Card(15.6, 4, 104, 736),
    "RTX 4080": Card(15.6, 4, 97.5, 717),
    "RTX 4070 Ti SUPER": Card(15.6, 4, 88, 672),
    "RTX 4070 Ti": Card(11.6, 4, 80, 504),
    "RTX 4070 SUPER": Card(11.6, 4, 71, 504),
    "RTX 4070": Card(11.6, 4, 58, 504),
    "RTX 4060 Ti 8GB": Card(7.6, 4, 44, 288, lanes=8),
    "RTX 4060 Ti 16GB": Card(15.6, 4, 44, 288, lanes=8),
    "RTX 4060": Card(7.6, 4, 30, 272, lanes=8),
    "RTX 3090 Ti": Card(23.6, 4, 80, 1008),
    "RTX 3090": Card(23.6, 4, 71, 936),
    "RTX 3080 Ti": Card(11.6, 4, 68, 912),
    "RTX 3080 12GB": Card(11.6, 4, 61, 912),
    "RTX 3080": Card(9.6, 4, 60, 760),
    "RTX 3070 Ti": Card(7.6, 4, 43, 608),
    "RTX 3070": Card(7.6, 4, 41, 448),
    "RTX 3060 Ti": Card(7.6, 4, 32, 448),
    "RTX 3060": Card(11.6, 4, 25, 360),
    "RTX 3060 8GB": Card(7.6, 4, 25, 240),
    "RTX 3050": Card(7.6, 4, 18, 224, lanes=8),
    "RTX 3050 6GB": Card(5.6, 4, 13.5, 168, lanes=8),
    "TITAN RTX": Card(23.6, 3, 130, 672),
    "RTX 2080 Ti": Card(10.6, 3, 54, 616),
    "RTX 2080 SUPER": Card(7.6, 3, 45, 496),
    "RTX 2080": Card(7.6, 3, 40, 448),
    "RTX 2070 SUPER": Card(7.6, 3, 36, 448),
    "RTX 2070": Card(7.6, 3, 30, 448),
    "RTX 2060 SUPER": Card(7.6, 3, 29, 448),
    "RTX 2060": Card(5.6, 3, 26, 336),
    "RTX 2060 12GB": Card(11.6, 3, 29, 336),
    "GTX 1660 Ti": Card(5.6, 3, 11, 288),
    "GTX 1660 SUPER": Card(5.6, 3, 10, 336),
    "GTX 1660": Card(5.6, 3, 10, 192),
    "GTX 1650 SUPER": Card(3.6, 3, 8.9, 192),
    "GTX 1650": Card(3.6, 3, 6, 128),
}

_SIZE = re.compile(r"\b(\d+) ?gi?b\b")
# They say nothing of the figures, so that "3060" will do for "NVIDIA GeForce RTX 3060".
_PLAIN_WORDS = {"nvidia", "geforce", "gpu", "tesla", "rtx", "gtx", "blackwell", "generation"}
_PLAIN_WORDS |= {"workstation", "edition"}


def find_card(name: str) -> Machine:
    """Return the machine that a card's name stands for.

    The maker's name, "RTX" and spaces may be left out, and so may the memory, as in "4060 Ti".

    Raises:
        ValueError: If the table has no such card; names the nearest and all that it has.
    """
    typed = _plain(name)
    size = _size_in(name)
    fitting = [known for known in CARDS if _plain(known) == typed and _has_size(known, size)]
    if not fitting:
        words = {_plain(known): known for known in CARDS}
        near = nearest_name(typed, words)
        hint = f"Did you mean {words[near]!r}? " if near else ""
        raise ValueError(
            f"There is no card {name!r} in the table. {hint}Known are: {', '.join(CARDS)}."
        )
    return _machine(_usual(fitting))


def match_card(device_name: str, memory_bytes: int | None = None) -> Machine | None:
    """Return the machine for what a driver calls its card, or None for one not in the table.

    Args:
        device_name: Such as `NVIDIA GeForce RTX 4060 Ti`, whatever its memory.
        memory_bytes: Its memory, which tells cards of one name apart.
    """
    words, size = set(_words(device_name)), _size_in(device_name)
    fitting = [known for known in CARDS if words.issuperset(_words(known))]
    # What a laptop's card has of its namesake's figures, the name does not tell.
    if not fitting or "laptop" in words:
        return None
    most = max(len(_words(known)) for known in fitting)
    fitting = [known for known in fitting if len(_words(known)) == most]
    if memory_bytes is None:
        return _machine(_usual([n for n in fitting if _has_size(n, size)] or fitting))
    nearest = min(fitting, key=lambda known: abs(CARDS[known].memory_gib * GIB - memory_bytes))
    return replace(_machine(nearest), memory_bytes=memory_bytes)


def _words(name: str) -> list[str]:
    """What tells a card from others, without the size of its memory."""
    words = re.split(r"[\s_-]+", _SIZE.sub("", name.lower().replace("-", " ")))
    return [word for word in words if word and word not in _PLAIN_WORDS]


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|rtx|gtx", "", "".join(_words(name)))


def _size_in(name: str) -> int | None:
    """GB of memory that a name states."""
    found = _SIZE.search(name.lower().replace("-", " "))
    return None if found is None else int(found[1])


def _has_size(known: str, size_gb: int | None) -> bool:
    """Whether a card is sold as one of that size, of which a driver gives nine tenths at least."""
    gib = CARDS[known].memory_gib
    return size_gb is None or gib <= size_gb <= gib / 0.89


def _usual(names: list[str]) -> str:
    """Of cards with one name that whose size goes without saying, or else the smallest."""
    return min(names, key=lambda known: (bool(_size_in(known)), CARDS[known].memory_gib))


def _machine(known: str) -> Machine:
    card = CARDS[known]
    return Machine(
        name=known,
        source="table of cards",
        memory_bytes=round(card.memory_gib * GIB),
        link_bytes_per_s=card.link_bytes_per_s,
        matmul_flops=card.tflops * 1e12 * MATMUL_SHARE,
        attention_flops=card.tflops * 1e12 * ATTENTION_SHARE,
        memory_bytes_per_s=card.memory_gb_per_s * 1e9 * MEMORY_SHARE,
    )
