"""What a measured step says of other cards and links: computing scaled, bytes over the link."""

from typing import Any, NamedTuple


class Card(NamedTuple):
    """A card by its makers' data sheet.

    Attributes:
        name: what it is called.
        tflops: dense bf16 with fp32 accumulation, 10**12 per second.
        link: what it is plugged into.
    """

    name: str
    tflops: float
    link: str


LINKS = {"PCIe 3 x16": 12.5e9, "PCIe 4 x16": 25e9, "PCIe 5 x16": 54e9}
"""Bytes per second that pinned copies to the device reach in practice."""

CARDS = (
    Card("RTX 3090", 71, "PCIe 4 x16"),
    Card("RTX 4090", 165, "PCIe 4 x16"),
    Card("RTX 5090", 210, "PCIe 5 x16"),
    Card("RTX A6000", 155, "PCIe 4 x16"),
    Card("L40S", 362, "PCIe 4 x16"),
    Card("A100", 312, "PCIe 4 x16"),
    Card("H100", 989, "PCIe 5 x16"),
)

_MEASURED = {"H100": 989.0, "H200": 989.0, "A100": 312.0}


class Prediction(NamedTuple):
    """A streamed step and the same with all weights resident, in milliseconds."""

    streamed_ms: float
    resident_ms: float

    @property
    def ratio(self) -> float:
        """How much longer the streamed step takes."""
        return self.streamed_ms / self.resident_ms


def predict(compute_ms: float, streamed_bytes: int, link_bytes_per_s: float) -> Prediction:
    """The bound: a step computes or copies, whichever is longer."""
    return Prediction(max(compute_ms, streamed_bytes / link_bytes_per_s * 1e3), compute_ms)


def make_predictions(facts: dict[str, Any]) -> str:
    """What the measured resident steps of a result predict for other links and cards."""
    computed = {row["frames"]: row["step_ms"] for row in facts["rows"] if row["mode"] == "resident"}
    if not computed:
        return ""
    frames = sorted(computed)
    lines = [
        "## What this predicts elsewhere",
        "",
        "A streamed step takes the longer of its computing and its bytes over the link. The same "
        "card on other links, then other cards on theirs: computing scaled from this card by the "
        "data sheets' dense bf16 rates, an estimate; the ratio is to a step with all weights on "
        "the card, whether or not they fit there.",
        "",
        "| card and link | " + " | ".join(f"{n} frames: ms (ratio)" for n in frames) + " |",
        "|---" * (len(frames) + 1) + "|",
    ]
    measured = next((rate for name, rate in _MEASURED.items() if name in facts["device"]), None)
    places = [(facts["device"], 1.0, link) for link in LINKS]
    if measured is not None:
        places += [(card.name, measured / card.tflops, card.link) for card in CARDS]
    for name, slower, link in places:
        cells = [f"{name}, {link} ({LINKS[link] / 1e9:.1f} GB/s)"]
        for count in frames:
            step = predict(computed[count] * slower, facts["block_bytes"], LINKS[link])
            cells.append(f"{step.streamed_ms:.0f} ({step.ratio:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
