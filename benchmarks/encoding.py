"""The encode stage: a text encoder streamed through the device, beside a resident one."""

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import empty_caches, read_peak, reset_peak, synchronize, time_steps
from fastvideo_lightning import VideoModule
from fastvideo_lightning.callbacks import LayerwiseOffload, Resident
from fastvideo_lightning.callbacks.placement import Placement

NUM_TOKENS = 512  # what Wan pads every prompt to


def measure_encoding(folder: Path, device: torch.device, *, rounds: int = 5) -> dict[str, Any]:
    """Time the text encoder of a checkpoint on one prompt, streamed and resident.

    Args:
        folder: the checkpoint.
        device: where it computes.
        rounds: how often each is timed.
    """
    on_cpu = device.type == "cpu"  # runs in fp32 there, which the file does not hold
    callbacks: dict[str, Placement] = {
        "streamed": LayerwiseOffload("text_encoder", host_memory="auto" if on_cpu else "mapped"),
        "resident": Resident("text_encoder"),
    }
    results: dict[str, Any] = {"tokens": NUM_TOKENS}
    outputs = {}
    for name, callback in callbacks.items():
        results[name], outputs[name] = _measure(callback, folder, device, rounds)
    results["equal"] = torch.equal(outputs["streamed"], outputs["resident"])
    return results


def _measure(
    callback: Placement, folder: Path, device: torch.device, rounds: int
) -> tuple[dict[str, Any], torch.Tensor]:
    module = VideoModule.from_pretrained(folder, device_type=device.type)
    before = empty_caches(device)
    started = time.perf_counter()
    engine = callback.attach(module, device).engine
    callback.on_predict_batch_start()
    synchronize(device)
    setup_s = time.perf_counter() - started
    vocabulary = module.text_encoder.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, NUM_TOKENS), generator=generator).to(device)
    mask = torch.ones_like(ids)

    encode = partial(_encode, module.text_encoder, ids, mask)
    encode()
    reset_peak(device)
    output = encode().cpu()
    peak = read_peak(device)
    alone = []
    for _ in range(rounds):
        started = time.perf_counter()
        encode()
        synchronize(device)
        alone.append((time.perf_counter() - started) * 1e3)
    in_a_row = [time_steps(encode, device) * 1e3 for _ in range(rounds)]
    results = {
        "ms": statistics.median(in_a_row),
        "alone_ms": statistics.median(alone),
        "setup_s": setup_s,
        "reserved_gb": (peak.reserved - before.reserved) / 1e9,
        "streamed_bytes": sum(unit.size_bytes for unit in engine.units) if engine else 0,
    }
    callback.on_predict_batch_end()
    callback.detach()
    del module, encode
    empty_caches(device)
    return results, output


@torch.no_grad()
def _encode(encoder: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    states: torch.Tensor = encoder(ids, mask).last_hidden_state
    return states
