import pytest

from fastvideo_lightning import VideoGenerator, VideoModule
from fastvideo_lightning.modules.vocabulary import describe_unknown, unknown_words

SETTINGS = {"num_inference_steps": 1, "num_frames": 9, "height": 48, "width": 48}


@pytest.fixture
def module():
    return VideoModule.from_pretrained("tiny-shapes", device_type="cpu")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red circle moves right", []),
        ("A RED circle, moves right.", []),
        ("a purple elephant dances \U0001f600", ["elephant", "dances", "\U0001f600"]),
    ],
)
def test_words_that_the_tokenizer_has_no_token_for_are_told_as_they_were_typed(
    module, prompt, words
):
    assert unknown_words(module.pipeline, [prompt, prompt]) == words


def test_a_long_word_and_a_long_list_are_cut_short():
    said = describe_unknown(["x" * 10_000, *(f"w{i}" for i in range(20))])
    assert f"'{'x' * 37}...', 'w0'" in said
    assert "'w8' and 11 more: what is shown" in said
    assert len(said) < 200


def test_without_a_tokenizer_nothing_is_said(module):
    module.pipeline.tokenizer = None
    assert unknown_words(module.pipeline, ["elephant"]) == []


def test_each_word_is_told_once_before_the_video_is_made(module, tmp_path, caplog):
    with VideoGenerator(module, accelerator="cpu", progress=False) as generator:
        generator.generate_video("a red elephant", save_video=False, **SETTINGS)
        prompts = ["a red elephant", "a giraffe moves"]
        generator.generate_videos(prompts, output_path=tmp_path, **SETTINGS).close()
    said = [record.message for record in caplog.records if "does not know" in record.message]
    assert [message.split(":")[0] for message in said] == [
        "The model does not know 'elephant'",
        "The model does not know 'giraffe'",
    ]
