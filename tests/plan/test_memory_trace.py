"""The model of torch's allocator, and the count of what a denoiser allocates."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from fastvideo_lightning import SamplingParams
from fastvideo_lightning.plan.activations import count_denoiser
from fastvideo_lightning.plan.memory_trace import MIB, CachingAllocator, count_allocations
from fastvideo_lightning.plan.workload import Workload


def reserved_mib(*sizes_mib: float) -> float:
    allocator = CachingAllocator()
    for size in sizes_mib:
        allocator.take(round(size * MIB))
    return allocator.reserved_bytes / MIB


@pytest.mark.parametrize(
    ("sizes_mib", "reserved"),
    [((0.001,), 2), ((1,) * 3, 4), ((1.5,), 20), ((9, 9), 20), ((9, 9, 9), 40), ((11,), 12)],
)
def test_segments_are_of_2_mib_of_20_or_as_large_as_their_tensor(sizes_mib, reserved):
    assert reserved_mib(*sizes_mib) == reserved


def test_a_tensor_takes_the_smallest_free_piece_and_leaves_the_rest():
    allocator = CachingAllocator()
    large, small = allocator.take(64 * MIB), allocator.take(32 * MIB)
    allocator.give_back(large)
    allocator.give_back(small)
    first = allocator.take(30 * MIB)
    assert first.start == 64 * MIB
    allocator.take(64 * MIB)
    assert allocator.reserved_bytes == 96 * MIB


def test_a_small_tensor_in_a_large_piece_costs_a_whole_segment():
    allocator = CachingAllocator()
    allocator.give_back(allocator.take(64 * MIB))
    allocator.take(2 * MIB)
    allocator.take(64 * MIB)
    assert allocator.reserved_bytes == 128 * MIB


def test_free_neighbours_are_joined():
    allocator = CachingAllocator()
    allocator.give_back(allocator.take(64 * MIB))
    pieces = [allocator.take(16 * MIB) for _ in range(4)]
    for i in (0, 2, 1, 3):
        allocator.give_back(pieces[i])
    allocator.take(64 * MIB)
    assert allocator.reserved_bytes == 64 * MIB


def test_what_is_alive_at_once_is_counted_and_weights_are_not():
    weight = torch.empty(1 << 20, 16, device="meta", dtype=torch.uint8)

    def call() -> None:
        once = weight + 1
        for _ in range(3):
            once = once + 1

    found = count_allocations(call, [weight])
    assert found.allocated_bytes == 32 * MIB
    assert found.reserved_bytes == 32 * MIB


# MiB on an H100 above the weights and the workspace: `benchmarks/results/plan.md`, resident.
@pytest.mark.parametrize(
    ("name", "frames", "allocated", "reserved"),
    [
        ("wan-1.3b", 17, 374, 530),
        ("wan-1.3b", 81, 1546, 2214),
        ("wan-14b", 17, 857, 1266),
        ("wan-14b", 81, 3567, 5256),
    ],
)
def test_a_denoisers_call_holds_what_it_held_on_a_gpu(name, frames, allocated, reserved, wan):
    params = SamplingParams(height=480, width=832, num_frames=frames).merge(guidance_scale=1.0)
    work = Workload.of(wan(name), params).work["transformer"]
    assert work.activation_bytes / MIB == pytest.approx(allocated, rel=0.01)
    assert work.held_bytes / MIB == pytest.approx(reserved, rel=0.04)
    assert work.held_bytes / MIB >= reserved


def test_a_denoisers_configuration_may_hold_more_than_its_class_asks_for():
    narrow = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 32}
    model = WanTransformer3DModel(num_layers=1, **narrow)

    def count():
        how = {"batch": 1, "dtype_of": lambda _: torch.float32, "timestep_per_token": False}
        return count_denoiser(model, (1, 8, 8), **how)

    expected = count()
    model.register_to_config(published_as="something")
    assert count() == expected
