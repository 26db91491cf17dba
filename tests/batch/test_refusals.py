"""What cannot be made is told before any work, with the prompt or the line that asks for it."""

import pytest
from support.checkpoints import PROMPT, SIZE

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.prompts.dataset import PromptFileError
from fastvideo_lightning.prompts.files import read_prompt_file


@pytest.fixture(scope="module")
def generator(checkpoint):
    with VideoGenerator.from_pretrained(checkpoint("t2v"), accelerator="cpu") as generator:
        yield generator


def test_wrong_prompts_are_found_before_any_work(generator, tmp_path):
    wrong = [
        ([{"prompt": "a", "num_frames": 4}], ValueError, "num_frames"),
        ([""], ValueError, "is empty"),
        (["a", 3], TypeError, "must be text"),
        ("a", TypeError, "must be a list"),
    ]
    for prompts, error, message in wrong:
        with pytest.raises(error, match=message):
            generator.generate_videos(prompts, output_path=tmp_path, **SIZE)
    with pytest.raises(TypeError, match="Did you mean num_frames"):
        generator.generate_videos(["a"], output_path=tmp_path, num_framez=5)
    for switch in ("resume", "fail_fast"):
        with pytest.raises(TypeError, match=f"{switch} must be True or False, got 'no'"):
            generator.generate_videos(["a"], output_path=tmp_path, **{switch: "no"})
    assert not (tmp_path / "manifest.jsonl").exists()


def test_something_else_in_the_place_of_a_batchs_own_files_is_refused(generator, tmp_path):
    (tmp_path / ".batch").touch()
    what = "batch' is no folder, and a batch needs it as one. Move it away"
    with pytest.raises(OSError, match=what):
        generator.generate_videos([PROMPT], output_path=tmp_path, **SIZE)


def test_what_the_model_refuses_of_one_prompt_is_told_with_the_prompt(generator, tmp_path):
    prompts = [PROMPT, {"prompt": "a blue square", "num_frames": 2}]
    expected = "^Prompt 2, a blue square: num_frames must be 1 plus a multiple of 4"
    with pytest.raises(ValueError, match=expected):
        generator.generate_videos(prompts, output_path=tmp_path, **SIZE)
    with pytest.raises(ValueError, match="^num_frames must be"):
        generator.generate_videos(prompts[1:], output_path=tmp_path, **SIZE)


def test_what_the_model_refuses_of_a_file_is_told_with_every_line(generator, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,num_frames\n\na,2\nb,5\nc,3\n")
    with pytest.raises(PromptFileError) as refused:
        generator.generate_videos(read_prompt_file(path), output_path=tmp_path, **SIZE)
    lines = str(refused.value).splitlines()
    told = [line.partition(": num_frames must be 1 plus")[0] for line in lines]
    assert told == [f"{path}, line 3", f"{path}, line 5"]
    assert not list(tmp_path.glob("*.mp4"))


def test_what_the_model_refuses_of_all_texts_is_told_once(generator, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a\nb\n")
    for prompts in (read_prompt_file(path), ["a", "b"]):
        with pytest.raises(ValueError, match=r"^num_frames must be .*\.$"):
            generator.generate_videos(prompts, output_path=tmp_path, **{**SIZE, "num_frames": 2})


@pytest.mark.parametrize(("more", "last"), [(1, "... and 1 more prompt."), (5, "... and 5 more p")])
def test_of_many_prompts_the_first_are_told_and_the_rest_counted(generator, tmp_path, more, last):
    # Two kinds, for what is the same of all is told once.
    prompts = [{"prompt": "a", "num_frames": 2 + index % 2} for index in range(20 + more)]
    with pytest.raises(ValueError, match="num_frames must be") as refused:
        generator.generate_videos(prompts, output_path=tmp_path, **SIZE)
    lines = str(refused.value).splitlines()
    assert [line.partition(",")[0] for line in lines[:20]] == [f"Prompt {n + 1}" for n in range(20)]
    assert len(lines) == 21
    assert lines[20].startswith(last)
