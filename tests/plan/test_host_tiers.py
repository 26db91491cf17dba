import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastvideo_lightning import SamplingParams, VideoModule
from fastvideo_lightning.plan import host_tiers, make_plan, sizes
from fastvideo_lightning.plan.host_memory import FreeMemory
from fastvideo_lightning.plan.host_tiers import (
    COURIER_BYTES,
    HostBudget,
    HostBudgetTooSmallError,
    Moving,
    check_computes_on_cpu,
    deal_tiers,
)
from fastvideo_lightning.plan.machine import GIB

BLOCK = 700 << 20


def moving(num_blocks=40, fqn="transformer", fixed=0, resident=0):
    return Moving(fqn, (BLOCK,) * num_blocks, (BLOCK,) * num_blocks, fixed, resident)


def test_what_fits_is_held_whole():
    (tiers,) = deal_tiers([moving()], HostBudget(40 * BLOCK, 0)).values()
    assert (tiers.held, tiers.read_bytes) == (40, 0)
    assert tiers.host_memory("auto") == "auto"


def test_what_does_not_is_read_from_the_page_cache_as_far_as_it_fits_there():
    budget = HostBudget(16 * BLOCK + COURIER_BYTES, 10 * BLOCK)
    (tiers,) = deal_tiers([moving()], budget).values()
    assert tiers.host_memory("auto") == {"auto": 16, "courier": 10, "disk": 14}
    assert str(tiers) == "16 held in memory, 10 read from the page cache, 14 read from the disk"


def test_denoisers_are_held_before_what_is_called_once():
    tiers = deal_tiers([moving(), moving(1, "vae")], HostBudget(40 * BLOCK + COURIER_BYTES, 0))
    assert tiers["transformer"].held == 40
    assert (tiers["vae"].held, tiers["vae"].on_disk) == (0, 1)


def test_what_no_file_has_as_it_runs_is_held_first_or_refused_with_the_figures():
    whole = moving(4, "text_encoder", fixed=4 * BLOCK)
    tiers = deal_tiers([moving(), whole], HostBudget(10 * BLOCK + COURIER_BYTES, 0))
    assert tiers["text_encoder"].held == 4
    assert tiers["transformer"].held == 6
    with pytest.raises(HostBudgetTooSmallError, match=r"=2 is too small: 3.23 GiB.*text_enc.*pack"):
        deal_tiers([moving(), whole], HostBudget(2 * GIB, 0, is_asked=True))


def test_blocks_that_take_turns_on_the_device_are_held_beside_those_that_stream():
    pair = [moving(20, name, resident=20 * BLOCK) for name in ("transformer", "transformer_2")]
    whole = deal_tiers(pair, HostBudget(80 * BLOCK, 0))
    assert [tiers.read_bytes for tiers in whole.values()] == [0, 0]
    tiers = deal_tiers(pair, HostBudget(50 * BLOCK + COURIER_BYTES, 0))
    assert [each.held for each in tiers.values()] == [10, 0]
    with pytest.raises(HostBudgetTooSmallError, match="a smaller dit_resident_blocks, which hold"):
        deal_tiers(pair, HostBudget(40 * BLOCK, 0))


def test_less_than_the_buffers_is_refused_with_what_is_possible():
    with pytest.raises(HostBudgetTooSmallError, match=r"Pass host_memory_budget=0\.55 or more"):
        deal_tiers([moving()], HostBudget(GIB // 4, 0, is_asked=True))
    with pytest.raises(HostBudgetTooSmallError, match=r"Host memory that is free, 0\.25 GiB"):
        deal_tiers([moving()], HostBudget(GIB // 4, 0))


@pytest.mark.parametrize("kind", ["t2v", "two_experts"])
def test_on_a_cpu_a_model_is_refused_only_where_what_it_needs_is_more_than_is_free(
    checkpoint, kind, monkeypatch
):
    module = VideoModule.from_pretrained(checkpoint(kind), device_type="cpu")
    swap = type("Swap", (), {"free": 0})
    monkeypatch.setattr(psutil, "swap_memory", swap)
    sizes = {
        (source.path, source.offset): (fqn, source.shape.numel() * source.cpu_dtype.itemsize)
        for fqn, source in module.weight_sources.items()
        if source.cpu_dtype == source.stored_dtype
    }
    cast = {
        (source.path, source.offset): source.shape.numel() * source.cpu_dtype.itemsize
        for source in module.weight_sources.values()
        if source.cpu_dtype != source.stored_dtype
    }
    largest = max(
        sum(size for fqn, size in sizes.values() if fqn.startswith(f"{denoiser}."))
        for denoiser in module.denoisers
    )
    needed = sum(cast.values()) + largest

    def leave(size_bytes):
        monkeypatch.setattr(
            host_tiers, "find_free_memory", lambda: FreeMemory(size_bytes, "the machine")
        )

    leave(needed)
    check_computes_on_cpu(module)
    leave(needed - 1)
    with pytest.raises(HostBudgetTooSmallError, match="to compute on the CPU, and the machine lea"):
        check_computes_on_cpu(module)
    swap.free = 1
    check_computes_on_cpu(module)


@settings(max_examples=300)
@example([([578337743, 734003200], 0.5, 0)], 1_193_041_384, 0)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, BLOCK), min_size=1, max_size=50),
            st.floats(0, 1),
            st.integers(0, 20 * BLOCK),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 60 * BLOCK),
    st.integers(0, 60 * BLOCK),
)
def test_no_sum_ever_exceeds_its_budget(parts, held, cache):
    found = [
        Moving(str(i), tuple(sizes), tuple(sizes), round(fixed * sum(sizes)), resident)
        for i, (sizes, fixed, resident) in enumerate(parts)
    ]
    resident = sum(each.resident_bytes for each in found)
    try:
        tiers = deal_tiers(found, HostBudget(held, cache))
    except HostBudgetTooSmallError:
        assert sum(each.must_hold_bytes for each in found) + resident + COURIER_BYTES > held
        return
    for each in found:
        its = tiers[each.fqn]
        assert its.held + its.cached + its.on_disk == len(each.sizes)
        assert its.held_bytes + its.read_bytes == each.size_bytes
    reads = any(its.read_bytes for its in tiers.values())
    holds = sum(its.held_bytes for its in tiers.values()) + resident
    assert holds + reads * COURIER_BYTES <= held
    assert sum(its.cached_bytes for its in tiers.values()) <= cache


def test_what_waits_where_on_the_host_changes_nothing_of_the_gpus_memory(monkeypatch, wan):
    # files that hold the weights as they run, which the model on meta has not
    monkeypatch.setattr(sizes, "_held", lambda root, binding: 0)
    video = SamplingParams(height=480, width=832, num_frames=17)
    flags = {"vae_cpu_offload": True, "text_encoder_cpu_offload": False}
    flags |= {"text_encoder_layerwise_offload": True}
    ample, tight = (
        make_plan(wan("wan-1.3b"), video, flags=flags, card="H100", host_memory_gib=gib)
        for gib in (512, 4)
    )
    (vae,) = (part for part in tight.prediction.components if part.fqn == "vae")
    assert vae.waits == "1 read from the disk"
    assert f"│ {vae.where}: " in str(tight)
    assert [stage.reserved_bytes for stage in tight.prediction.stages] == [
        stage.reserved_bytes for stage in ample.prediction.stages
    ]
