"""The page of what `benchmarks.stages` has measured."""

import statistics
from typing import Any


def make_page(facts: dict[str, Any]) -> str:
    """The parts that are there, each as a few lines or a table."""
    lines = [
        f"# Stages and whole videos, {facts['model']}",
        "",
        f"{facts['device']}, torch {facts['torch']}, diffusers {facts['diffusers']}, "
        f"transformers {facts['transformers']}, Python {facts['python']}, commit "
        f"{facts['commit']}. Random weights in files on disk.",
    ]
    for name, describe in _PARTS.items():
        if name in facts:
            lines += ["", *describe(facts)]
    return "\n".join(lines) + "\n"


def encode_ratio(part: dict[str, Any]) -> float:
    """The streamed encoder's time over that of its bytes on the link."""
    streamed = part["streamed"]
    link_ms = streamed["streamed_bytes"] / part["link_bytes_per_s"] * 1e3
    return float(streamed["ms"] / link_ms)


def _describe_encode(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"## Encode: the text encoder, {facts['encode']['tokens']} tokens",
        "",
        "| mode | in a row ms | alone ms | streamed GB | reserved GB | set-up s |",
        "|---" * 6 + "|",
    ]
    for mode in ("streamed", "resident"):
        row = facts["encode"][mode]
        lines.append(
            f"| {mode} | {row['ms']:.1f} | {row['alone_ms']:.1f} "
            f"| {row['streamed_bytes'] / 1e9:.2f} | {row['reserved_gb']:.2f} "
            f"| {row['setup_s']:.1f} |"
        )
    equal = "equal bit for bit" if facts["encode"]["equal"] else "NOT equal"
    rate = facts["encode"]["link_bytes_per_s"] / 1e9
    ratio = encode_ratio(facts["encode"])
    return [
        *lines,
        "",
        f"Streamed against its bytes on the link, at {rate:.1f} GB/s: {ratio:.3f}. "
        f"Outputs {equal}.",
    ]


def _describe_moments(facts: dict[str, Any]) -> list[str]:
    part = facts["moments"]
    typical = statistics.median(part["step_ms"][-1])
    return [
        "## Hand-over between two experts, and the wait for the VAE",
        "",
        f"{part['sampling']}; a step's median is {typical:.1f} ms. Medians of "
        f"{len(part['step_ms']) - 1} videos, the most in brackets.",
        "",
        f"- The step of the hand-over takes {part['hand_over_excess_ms']:+.1f} ms against the "
        f"median step ({part['hand_over_excess_max_ms']:+.1f}).",
        f"- From the last step's end to the decode's first layer: {part['decode_wait_ms']:.1f} ms "
        f"({part['decode_wait_max_ms']:.1f}).",
    ]


def _describe_caps(facts: dict[str, Any]) -> list[str]:
    lines = [
        "## Whole videos under a cap of device memory",
        "",
        "`vae_tiling=True`, 2 steps, guidance 3, text encoder streamed; set-up from the files on "
        f"disk {facts['caps'][0]['setup_s']:.1f} s.",
        "",
        "| frames | cap GiB | completes | reserved GiB | uncapped GiB | seconds | equal |",
        "|---" * 7 + "|",
    ]
    for row in facts["caps"]:
        if not row["completes"]:
            lines.append(f"| {row['frames']} | {row['cap_gib']} | no: {row['error']} | | | | |")
            continue
        lines.append(
            f"| {row['frames']} | {row['cap_gib']:g} | yes | {row['reserved_gib']:.2f} "
            f"| {row['uncapped_reserved_gib']:.2f} | {row['seconds']:.1f} "
            f"| {'yes' if row['equal'] else 'no'} |"
        )
    return lines


def _describe_flat(facts: dict[str, Any]) -> list[str]:
    part = facts["flat"]
    return [
        f"## {part['videos']} videos in a row",
        "",
        f"{part['sampling']}. From the third to the last, reserved device memory grew by "
        f"{part['reserved_growth']:.2%}, the process in host memory by "
        f"{part['host_rss_growth']:.2%} (to {part['host_rss_bytes'][-1] / 1e9:.2f} GB).",
    ]


_PARTS = {
    "encode": _describe_encode,
    "moments": _describe_moments,
    "caps": _describe_caps,
    "flat": _describe_flat,
}
