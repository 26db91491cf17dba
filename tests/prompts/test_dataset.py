import subprocess
import sys

import pytest

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
