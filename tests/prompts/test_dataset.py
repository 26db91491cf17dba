import subprocess
import sys

import pytest

from fastvideo_lightning.output.files import MAX_STEM_BYTES
from fastvideo_lightning.prompts.dataset import PromptDataset


def test_each_prompt_gets_the_seed_plus_its_index():
    dataset = PromptDataset(["a", "b", "c"], seed=5)
    assert [(item["index"], item["prompt"], item["seed"]) for item in dataset] == [
        (0, "a", 5),
        (1, "b", 6),
        (2, "c", 7),
    ]


def test_an_item_holds_only_the_sampling_fields_that_were_given():
    item = PromptDataset(["a"], height=64, width=None)[0]
    assert item == {"index": 0, "prompt": "a", "seed": 1024, "height": 64}


def test_a_prompt_that_is_a_mapping_overrides_the_fields_of_the_run():
    dataset = PromptDataset(["a", {"prompt": "b", "seed": 9, "fps": 8}], height=64, fps=16)
    assert dataset[1] == {"index": 1, "prompt": "b", "seed": 9, "height": 64, "fps": 8}


@pytest.mark.parametrize("prompt", ["", "  \n", {"prompt": ""}, {"seed": 3}])
def test_an_empty_prompt_is_refused_by_its_place(prompt):
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        PromptDataset(["a", prompt])


@pytest.mark.parametrize("prompt", [3, None, b"a"])
def test_a_prompt_that_is_no_text_is_refused_by_its_place(prompt):
    with pytest.raises(TypeError, match=r"prompts\[0\] must be text"):
        PromptDataset([prompt])


@pytest.mark.parametrize("prompts", ["a red circle", {"prompt": "a red circle"}, 5, None])
def test_what_is_no_list_of_prompts_is_refused_instead_of_being_read_letter_by_letter(prompts):
    with pytest.raises(TypeError, match=r"got one \w+\. Pass it in a list: \[prompt\]\.$"):
        PromptDataset(prompts)


def test_an_unknown_field_of_a_prompt_is_refused_with_its_place_and_the_nearest():
    with pytest.raises(ValueError, match=r"prompts\[0\] does not know 'steps_num'"):
        PromptDataset([{"prompt": "a", "steps_num": 3}])
    with pytest.raises(ValueError, match=r"Did you mean height\?"):
        PromptDataset(["a"], heigth=64)
    with pytest.raises(ValueError, match=r"\[1\] does not know 'promt'\. Did you mean prompt\?"):
        PromptDataset(["a", {"promt": "x"}])


def test_an_impossible_value_is_refused_when_the_dataset_is_made():
    with pytest.raises(ValueError, match="num_inference_steps must be"):
        PromptDataset([{"prompt": "a", "num_inference_steps": 0}])


def test_changing_an_item_does_not_change_the_dataset():
    dataset = PromptDataset(["a"])
    dataset[0]["prompt"] = "b"
    next(iter(dataset))["prompt"] = "c"
    assert dataset[0]["prompt"] == "a"


def test_a_dataloader_without_batching_gives_the_items_as_they_are():
    from torch.utils.data import DataLoader

    dataset = PromptDataset(["a", "b"])
    assert list(DataLoader(dataset, batch_size=None)) == list(dataset)


def test_prompts_and_config_import_without_torch():
    code = (
        "import sys, fastvideo_lightning.prompts.dataset, fastvideo_lightning.config;"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeds_make_as_many_items_of_each_prompt_from_its_own_seed_on():
    dataset = PromptDataset(["a", {"prompt": "b", "seed": 9}, "c"], seed=5, seeds=2)
    assert [(item["index"], item["prompt"], item["seed"], item["name"]) for item in dataset] == [
        (0, "a", 5, "a_5"),
        (1, "a", 6, "a_6"),
        (2, "b", 9, "b_9"),
        (3, "b", 10, "b_10"),
        (4, "c", 7, "c_7"),
        (5, "c", 8, "c_8"),
    ]
    assert dataset[3]["seed"] == 10


def test_one_seed_of_each_prompt_is_the_plain_dataset():
    prompts = ["a", {"prompt": "b", "name": "shot"}]
    assert list(PromptDataset(prompts, seeds=1)) == list(PromptDataset(prompts))
    assert "name" not in PromptDataset(prompts)[0]


def test_the_seed_stays_at_the_end_of_a_long_name():
    for prompt in ("x" * 5000, "字" * 5000):
        name = PromptDataset([prompt], seed=2**63 - 2, seeds=2)[1]["name"]
        assert name.endswith(f"_{2**63 - 1}")
        assert len(name.encode()) <= MAX_STEM_BYTES
    with pytest.raises(ValueError, match="seed must be a whole number"):
        PromptDataset(["a"], seed=2**64 - 1, seeds=2)


@pytest.mark.parametrize("seeds", [0, -1, 10_001, 2.0, True, "2", None])
def test_seeds_that_are_no_number_of_videos_are_refused(seeds):
    with pytest.raises((TypeError, ValueError), match="seeds must be"):
        PromptDataset(["a"], seeds=seeds)


def test_a_name_reaches_the_item_and_gets_the_seed_where_there_are_several():
    prompts = [{"prompt": "a", "name": "shot-1", "seed": 3}]
    assert PromptDataset(prompts)[0]["name"] == "shot-1"
    assert [item["name"] for item in PromptDataset(prompts, seeds=2)] == ["shot-1_3", "shot-1_4"]
    assert PromptDataset([{"prompt": "a", "name": None}])[0].keys() == {"index", "prompt", "seed"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "got ''. Write one such as"),
        ("  ", "Write one such as"),
        ("a/b", "such as 'a_b'"),
        ("..\\a", "such as 'a'"),
        ("clip.mp4", "Write it without a folder and a suffix, such as 'clip'"),
        (".hidden", "such as 'hidden'"),
        ("con", "such as 'video_con'"),
        ("a b", "such as 'a_b'"),
        ("a\0", "such as 'a'"),
        ("x" * 101, "of 100 bytes or less, got 101"),
        ("\ud800", "such as 'video'"),
        (7, "got 7. Write it as text"),
    ],
)
def test_a_name_that_no_file_should_have_is_refused_with_its_place(name, message):
    with pytest.raises((TypeError, ValueError)) as refused:
        PromptDataset(["a", {"prompt": "b", "name": name}])
    assert str(refused.value).startswith("prompts[1]: name must be the name of a file")
    assert message in str(refused.value)


def test_names_that_one_file_system_takes_for_the_same_are_refused_with_both_places():
    prompts = [{"prompt": "a", "name": "Shot"}, "b", {"prompt": "c", "name": "shot"}]
    with pytest.raises(
        ValueError, match=r"^prompts\[2\]: the name 'shot' is that of prompts\[0\]\. Give each"
    ):
        PromptDataset(prompts)
