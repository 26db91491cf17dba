import pytest

from fastvideo_lightning import PromptDataset
from fastvideo_lightning.prompts.sampler import Replica, deal, deal_in_rounds


def shares(dealing, prompts, count):
    """Return what each replica is dealt: index and whether it is a repeat."""
    return [
        [(turn.batch["index"], turn.is_repeat) for turn in dealing(prompts, Replica(r, count))]
        for r in range(count)
    ]


def test_a_stride_gives_each_prompt_to_one_replica():
    prompts = PromptDataset(["a", "b", "c"])
    for source in (prompts, iter(prompts)):
        dealt = [(turn.batch["index"], turn.is_repeat) for turn in deal(source, Replica(1, 2))]
        assert dealt == [(1, False)]


def test_only_the_prompts_of_its_own_share_are_asked_for():
    class Counting(PromptDataset):
        asked = []

        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    list(deal(Counting(["a", "b", "c", "d", "e"]), Replica(1, 3)))
    assert Counting.asked == [1, 4]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_rounds_give_all_equally_many_and_each_prompt_is_kept_once(count):
    dealt = shares(deal_in_rounds, PromptDataset(["a", "b", "c", "d", "e"]), count)
    assert len({len(share) for share in dealt}) == 1
    assert sorted(index for share in dealt for index, repeat in share if not repeat) == [*range(5)]


def test_a_round_holds_prompts_that_compute_alike():
    prompts = PromptDataset(
        ["a", {"prompt": "b", "num_inference_steps": 3}, {"prompt": "c", "seed": 9}, "d"]
    )
    first, second = shares(deal_in_rounds, prompts, 2)
    assert first == [(0, False), (3, False), (1, False)]
    assert second == [(2, False), (3, True), (1, True)]


def test_processes_of_one_replica_make_the_same_and_the_first_keeps_it():
    prompts = PromptDataset(["a", "b", "c"])
    for dealing in (deal, deal_in_rounds):
        first, other = (
            [(turn.batch["index"], turn.is_repeat) for turn in dealing(prompts, replica)]
            for replica in (Replica(1, 2, is_first=True), Replica(1, 2, is_first=False))
        )
        assert [index for index, _ in first] == [index for index, _ in other]
        assert all(repeat for _, repeat in other)
