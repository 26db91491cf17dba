import pytest
from transformers import BatchEncoding

from fastvideo_lightning import VideoGenerator, VideoModule
from fastvideo_lightning.modules import prompt_checks
from fastvideo_lightning.modules.prompt_checks import (
    describe_unknown,
    unknown_words,
    unread,
    warn_of_unread,
)

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


LONG = "a red circle moves right " * 103  # of 5 tokens


@pytest.mark.parametrize(
    ("item", "limit"),
    [
        ({"prompt": LONG}, 512),
        ({"prompt": LONG.rpartition(" circle")[0]}, None),  # 512 tokens
        ({"prompt": "a red circle moves right", "max_sequence_length": 4}, 4),
        ({"prompt": "a red circle moves right", "max_sequence_length": 5}, None),
    ],
)
def test_a_prompt_that_is_longer_than_what_the_model_reads_is_told(module, item, limit):
    said = unread(module.pipeline, item)
    assert len(said) == (limit is not None)
    if said:
        assert f"is longer than the {limit} tokens that the model reads" in said[0]
        assert len(said[0]) < 200


def test_where_one_of_two_tokenizers_reads_all_of_a_prompt_nothing_is_said(module, monkeypatch):
    class OneToken:  # a stand-in: finds one token in every text
        unk_token_id = None

        def __call__(self, text, **options):
            return BatchEncoding({"input_ids": [1]})

    both = [module.pipeline.tokenizer, OneToken()]
    monkeypatch.setattr(prompt_checks, "_tokenizers", lambda pipeline: iter(both))
    assert unread(module.pipeline, {"prompt": LONG}) == []


def test_prompts_that_are_too_long_are_told_of_once_and_in_one_line(module, caplog):
    items = [{"prompt": LONG}, {"prompt": f"a {LONG}"}, {"prompt": "a red circle"}]
    for _ in range(2):
        warn_of_unread(module.pipeline, items)
    (said,) = [record.message for record in caplog.records]
    assert "...' and 1 more are longer than the 512 tokens" in said
    assert said.endswith("Shorten them.")


def test_what_a_model_of_few_words_knows_is_told_beside_what_it_does_not(module):
    (said,) = unread(module.pipeline, {"prompt": "a pink circle"})
    assert said.startswith("The model does not know 'pink'")
    assert "It knows a, against," in said
    assert "purple" in said
    assert "unk" not in said


def test_the_words_of_a_large_vocabulary_are_not_listed(module, monkeypatch):
    monkeypatch.setattr(prompt_checks, "_MOST_KNOWN", 10)
    (said,) = unread(module.pipeline, {"prompt": "a pink circle"})
    assert said.endswith("Use other words.")
