"""Ranks that stream together: the bits of one process, a part of the memory each."""

import pytest

from distributed import adapter_claims, agreement_claims, edit_claims, registration_claims
from distributed import streaming_claims as claims
from distributed.ranks import World

KINDS = {"memory": {}, "meta": {}, "file": {"host_memory": "mapped"}}


@pytest.mark.parametrize("how", ["gather", "local"])
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_together_equals_plain(world: World, kind, how, tmp_path):
    path = tmp_path / "model.safetensors"
    misses = world.run(claims.streaming_equals_plain, kind, how, path, **KINDS[kind])
    assert len(set(misses)) == 1


@pytest.mark.parametrize("num_slots", [1, 3])
def test_so_does_it_with_other_numbers_of_slots(world: World, num_slots, tmp_path):
    path = tmp_path / "model.safetensors"
    world.run(claims.streaming_equals_plain, "memory", "gather", path, num_slots=num_slots)


def test_each_rank_brings_its_part_alone(world: World):
    world.run(claims.each_brings_its_part_alone)


def test_parts_are_pushed_where_devices_reach_each_others_memory(world: World):
    if world.backend != "nccl":
        pytest.skip("a device of the CPU has no copy engine")
    world.run(claims.parts_are_pushed)


def test_ranks_hold_a_part_each_and_read_each_weight_once(world: World):
    answers = world.run(claims.held_and_read)
    size = answers[0][1]
    padding = 4096 * 4 + 512
    for held, _, _, filled in answers:
        assert held <= size / world.size + padding
        assert abs(filled - size / world.size) < 0.2 * size / world.size
    assert sum(held for held, *_ in answers) <= size
    names = answers[0][2]
    assert all(sum(reads[name] for _, _, reads, _ in answers) == 1 for name in names)


def test_device_memory_is_the_slots_and_constant(world: World):
    world.run(claims.device_memory_is_constant)


@pytest.mark.parametrize("in_batch", [False, True])
def test_after_an_exception_on_all_ranks_they_are_right_again(world: World, in_batch):
    world.run(claims.after_an_exception_it_is_right_again, in_batch)


def test_residents_stay_and_the_rest_is_shared(world: World):
    world.run(claims.residents_stay_and_the_rest_is_shared)


def test_an_order_that_is_not_the_lists_own_is_learned(world: World):
    world.run(claims.an_order_that_is_not_the_lists_own_is_learned)


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("who", ["all", "one", "each"])
@pytest.mark.parametrize("edit", edit_claims.EDITS)
def test_an_edit_is_its_ranks_own_and_not_lost(world: World, edit, who, kind, tmp_path):
    world.run(edit_claims.edits_are_each_ranks_own, edit, who, kind, tmp_path / "model.safetensors")


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_that_is_loaded_counts(world: World, assign):
    world.run(edit_claims.a_state_dict_that_is_loaded_counts, assign)


def test_every_rank_sees_all_host_tensors_and_keeps_them(world: World, tmp_path):
    world.run(edit_claims.every_rank_sees_all_host_tensors, tmp_path / "model.safetensors")


def test_weights_that_differ_at_first_stay_each_ranks_own(world: World):
    world.run(edit_claims.weights_that_differ_at_first_stay_each_ranks_own)


@pytest.mark.parametrize("on_all", [True, False])
def test_adapters_come_and_go_on_all_ranks_or_on_one(world: World, on_all):
    world.run(edit_claims.adapters_come_and_go, on_all)


def test_quantized_weights_come_by_their_inner_tensors(world: World):
    world.run(edit_claims.quantized_weights_come_by_their_inner_tensors)


def test_what_a_forward_writes_is_kept(world: World):
    world.run(edit_claims.what_a_forward_writes_is_kept)


def test_other_blocks_on_one_rank_are_refused_on_all(world: World):
    world.run(agreement_claims.other_blocks_on_one_rank_are_refused_on_all)


def test_a_source_that_fails_on_one_rank_fails_on_all(world: World):
    errors = world.run(agreement_claims.a_source_that_fails_on_one_rank_fails_on_all)
    assert sorted(errors) == ["OSError"] + ["RuntimeError"] * (world.size - 1)


def test_ranks_out_of_step_are_told(world: World):
    world.run(agreement_claims.ranks_out_of_step_are_told)


def test_ranks_that_bring_everything_work_apart(world: World):
    world.run(agreement_claims.local_ranks_work_apart)


def test_a_component_may_be_called_by_one_rank(world: World):
    world.run(agreement_claims.a_component_may_be_called_by_one_rank)


def test_auto_lets_each_bring_alone_what_computes_for_longer_than_it_takes_to_come(world: World):
    messages, *others = world.run(agreement_claims.blocks_that_compute_long_come_as_a_whole)
    assert not any(others)
    assert [message.split(" from now on: ")[0] for message in messages] == [
        "4 blocks come as a whole to each rank",
        "4 blocks come in parts again",
        "4 blocks come as a whole to each rank",
        "4 blocks come in parts again",
        "2 blocks come as a whole to each rank",
        "2 blocks come as a whole to each rank",
        "1 block comes in parts again",
    ]
    assert "busy for 60 %" in messages[-3]


@pytest.mark.parametrize(("speeds", "gathers"), [((1e-3, 2e-3), True), ((2e-3, 1e-3), False)])
def test_auto_takes_the_faster_and_the_first_rank_says_so(world: World, speeds, gathers):
    answers = world.run(agreement_claims.auto_takes_the_faster, speeds)
    assert [chosen for chosen, _ in answers] == [gathers] * world.size
    (said,), *others = (messages for _, messages in answers)
    assert f"{world.size} ranks stream together" in said
    assert "1 ms" in said
    assert others == [[]] * (world.size - 1)


def test_what_is_measured_is_chosen_alike(world: World):
    assert (
        len({chosen for chosen, _ in world.run(agreement_claims.auto_takes_the_faster, None)}) == 1
    )


def test_two_transports_on_one_module_are_refused(world: World):
    world.run(agreement_claims.two_transports_on_one_module_are_refused)


@pytest.mark.parametrize("has_report", [False, True])
def test_a_report_does_not_hide_that_ranks_wait_for_each_other(world: World, has_report):
    claim = agreement_claims.a_failure_is_not_skipped_where_ranks_gather
    assert world.run(claim, has_report) == [True] * world.size


def test_the_ranks_of_each_node_share_among_themselves(world: World):
    shared = world.run(agreement_claims.nodes_share_among_themselves, 2)
    assert shared == ([[0, 1], [0, 1], [2, 3], [2, 3]] if world.size == 4 else [None, None])


def test_the_ranks_of_a_node_are_one_group(world: World):
    world.run(agreement_claims.the_group_is_found_once)


@pytest.mark.parametrize("who", ["all", "one"])
def test_adapters_are_each_ranks_own_and_the_blocks_bytes_are_still_shared(world: World, who):
    world.run(adapter_claims.adapters_are_each_ranks_own, who)


def test_an_adapter_on_one_rank_changes_no_ranks_way_alone(world: World):
    world.run(adapter_claims.an_adapter_on_one_rank_changes_no_ranks_way_alone)


@pytest.mark.parametrize(
    "kind", [k if k == "file" else pytest.param(k, marks=pytest.mark.exhaustive) for k in KINDS]
)
@pytest.mark.parametrize(
    "claim",
    [
        registration_claims.each_registers_the_pages_of_its_parts,
        registration_claims.what_is_brought_as_a_whole_is_registered_as_a_whole,
        registration_claims.what_links_are_fast_enough_for_is_registered_as_a_whole,
    ],
)
def test_a_rank_registers_what_it_copies(world: World, claim, kind, tmp_path):
    on_cpu(world).run(claim, kind, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "claim",
    [
        registration_claims.alone_or_apart_all_is_registered,
        registration_claims.another_that_copies_all_of_the_file_has_all_registered,
        registration_claims.where_files_are_refused_each_has_memory_of_its_own,
    ],
)
def test_a_rank_registers_all_of_a_file_or_nothing(world: World, claim, tmp_path):
    on_cpu(world).run(claim, tmp_path / "model.safetensors")


def on_cpu(world: World) -> World:
    if world.backend == "nccl":
        pytest.skip("the driver is played; the real one refuses what is wrong by itself")
    return world
