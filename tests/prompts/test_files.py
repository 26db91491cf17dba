import io
import json
import sys
import time
import tracemalloc

import pytest

from fastvideo_lightning.prompts import files
from fastvideo_lightning.prompts.dataset import PromptDataset, PromptFileError
from fastvideo_lightning.prompts.files import read_prompt_file

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def prompts(path):
    return [item["prompt"] for item in read_prompt_file(path)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", BOM])
def test_lines_of_text_are_prompts_whatever_ends_them(write, end, bom):
    text = end.join(["a red circle", "", "   ", "  a blue square ", "a 😀 moves"])
    assert prompts(write("p.txt", bom + text.encode())) == [
        "a red circle",
        "a blue square",
        "a 😀 moves",
    ]


STRANGE = ["x" * 10_000, "../../etc/passwd", "/", "a\0b", "CON", "a\u2028b\x0bc", "'\"{}[],;\t%s"]


@pytest.mark.parametrize("prompt", STRANGE)
def test_a_strange_prompt_comes_out_as_it_went_in(write, prompt):
    assert prompts(write("p.txt", prompt)) == [prompt]
    assert prompts(write("p.jsonl", json.dumps({"prompt": prompt}, ensure_ascii=False)))
    quoted = prompt.replace('"', '""')
    assert prompts(write("p.csv", f'prompt\n"{quoted}"\n')) == [prompt]


def test_a_line_that_begins_with_a_hash_is_a_prompt(write):
    assert prompts(write("p.txt", "# a\n#b\nc\n")) == ["# a", "#b", "c"]


def test_a_line_may_hold_any_sampling_parameter(write):
    jsonl = write(
        "p.jsonl",
        '{"prompt": "a", "num-frames": 33, "guidance_scale": 2.5, "seed": 3, "height": null}\r\n'
        "\r\n"
        '{"prompt": "b"}',
    )
    csv = write(
        "p.csv",
        BOM + b'prompt, num-frames, guidance_scale,seed\r\na,33,2.5,3\r\n,,,\r\n"b",,,\r\n',
    )
    expected = [
        {"prompt": "a", "num_frames": 33, "guidance_scale": 2.5, "seed": 3},
        {"prompt": "b"},
    ]
    assert read_prompt_file(jsonl) == read_prompt_file(csv) == expected
    assert PromptDataset(expected)[0]["num_frames"] == 33


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_the_columns_of_a_csv_may_be_split_as_other_spreadsheets_do(write, delimiter):
    path = write("p.csv", f'seed{delimiter}prompt\n7{delimiter}"a, b; c"\n')
    assert read_prompt_file(path) == [{"seed": 7, "prompt": "a, b; c"}]


def test_a_quoted_prompt_may_run_over_lines_and_the_count_goes_on_behind_it(write):
    path = write("p.csv", 'prompt,seed\n"a\nred\ncircle",1\nb,x\n')
    with pytest.raises(ValueError, match="line 5: seed must be a whole number"):
        read_prompt_file(path)


WRONG = [
    ("p.txt", b"fine\n\xff\xfe", "line 2: this is not UTF-8 text"),
    ("p.txt", "\n \n", "holds no prompts"),
    ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b",}', "line 3: not JSON: .* column 16"),
    ("p.jsonl", f'{{"seed": {"9" * 5000}}}', "line 1: a number of 5000 digits is too long. Short"),
    ("p.jsonl", '["a"]', "line 1: expected an object, got a list"),
    ("p.jsonl", '{"seed": 3}', "line 1: there is no prompt. Write the text of one"),
    ("p.jsonl", '{"promt": "a"}', r"line 1: there is no key 'promt'\. Did you mean 'prompt'\?"),
    ("p.jsonl", '{"prompt": ""}', "line 1: prompt is empty"),
    ("p.jsonl", '{"prompt": 3}', "line 1: prompt must be text, got int"),
    ("p.jsonl", '{"prompt": "a", "sed": 3}', r"line 1: .*'sed'. Did you mean 'seed'\?"),
    ("p.jsonl", '{"prompt": "a", "seed": 1.5}', "line 1: seed must be a whole number"),
    ("p.jsonl", '{"prompt": "a", "guidance_scale": NaN}', "line 1: guidance_scale must be"),
    ("p.jsonl", '{"prompt": "a", "seed": 1, "seed": 2}', "line 1: seed is given twice"),
    ("p.jsonl", '{"prompt": "a", "num-frames": 1, "num_frames": 2}', "num_frames is given twice"),
    ("p.jsonl", '{"prompt": "\\ud800"}', "line 1: prompt is no valid text"),
    ("p.jsonl", '{"prompt": "a", "negative_prompt": "\\ud800"}', "negative_prompt is no valid"),
    ("p.jsonl", '{"prompt": "a", "image_path": "no.png"}', "line 1: image_path: there is no file"),
    ("p.jsonl", '{"prompt": "a", "image_path": "a\\u0000"}', "line 1: image_path: there is no"),
    ("p.jsonl", "[" * 100_000, "line 1: "),
    ("p.jsonl", '{"prompt": "a", "seed": 1' + "0" * 5000 + "}", "line 1: "),
    ("p.csv", "seed\n1\n", "line 1: the header names no column prompt, got seed"),
    ("p.csv", "text,seed\na,1\n", "line 1: the header names no column prompt, got text, seed"),
    ("p.csv", "promt,seed\na,1\n", "line 1: the header does not know 'promt'. Did you mean prompt"),
    ("p.csv", "prompt,sed\na,1\n", "line 1: the header does not know 'sed'"),
    ("p.csv", "prompt,seed\na,1\nb\n", "line 3: expected 2 columns as in the header, got 1"),
    ("p.csv", "prompt\na, b\n", "line 2: expected 1 columns .* Quote texts with commas"),
    ("p.csv", 'prompt\n"a', "line 2: unexpected end of data"),
    ("p.csv", 'prompt\n"a" b', r"line 2: .*\. Close each quote, and double those within\."),
    ("p.jsonl", "null", "line 1: expected an object, got null. Write one object a line"),
    ("p.jsonl", '"a"', "line 1: expected an object, got a text. Write"),
    ("p.jsonl", "3", "line 1: expected an object, got a number. Write"),
    ("p.csv", "prompt,num_frames\na,many\n", "line 2: num_frames must be a whole number"),
    ("p.doc", "a", "must be a file that ends in .txt, .jsonl, .csv"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_is_wrong_is_told_with_its_line(write, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_prompt_file(write(name, content))
    assert name in str(caught.value)


MIB = 1 << 20


@pytest.mark.parametrize(
    "end", ["\n", *(pytest.param(end, marks=pytest.mark.exhaustive) for end in ("\r\n", "\r"))]
)
@pytest.mark.parametrize(
    ("name", "before", "begin", "end_of_line"),
    [
        ("p.txt", "a red circle", "", ""),
        ("p.txt", "a red circle", " ", "b"),
        ("p.jsonl", '{"prompt": "a"}', '{"prompt": "', '"}'),
        ("p.jsonl", '{"prompt": "a"}', '{"prompt": "a", "negative_prompt": "', '"}'),
        ("p.jsonl", '{"prompt": "a"}', "[[[[", ""),
        ("p.csv", "prompt", '"', '"'),
        ("p.csv", "prompt", "", ""),
    ],
)
@pytest.mark.parametrize(("size", "most_s"), [(200_000, 2), (50 * MIB, 10)])
def test_a_line_of_any_length_is_told_by_its_number_in_bounded_time_and_memory(
    write, name, before, begin, end_of_line, end, size, most_s
):
    if begin == " " and size < MIB:
        pytest.skip("what is around a prompt does not count")
    letter = " " if begin == " " else "a"
    path = write(name, f"{before}{end}{begin}{letter * size}{end_of_line}{end}")
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ValueError, match=r"line 2: ") as caught:
            read_prompt_file(path)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < most_s
    assert most_bytes < 3 * size + 20 * MIB
    assert len(str(caught.value)) < 500


def test_a_file_without_end_is_not_read_to_its_end(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_MAX_FILE_BYTES", MIB)
    endless = tmp_path / "p.txt"
    endless.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="holds more than 1 MiB. Split it"):
        read_prompt_file(endless)
    with open("/dev/zero") as zero:
        monkeypatch.setattr(sys, "stdin", zero)
        with pytest.raises(ValueError, match="stdin holds more than 1 MiB"):
            read_prompt_file("-")


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("p.jsonl", '{"promt": "a"}\n{"prompt": "b"}\n{\n[]', [1, 3, 4]),
        ("p.csv", 'prompt,seed\na,x\nb\nc,3\nd,-1\n"', [2, 3, 5, 6]),
        ("p.jsonl", "{\n" * 30, [*range(1, 21)]),
    ],
)
def test_every_wrong_line_is_told_the_first_twenty_with_what_is_wrong(write, name, content, wrong):
    with pytest.raises(PromptFileError) as caught:
        read_prompt_file(write(name, content))
    lines = str(caught.value).partition("\nA right ")[0].splitlines()
    told = [int(line.partition("line ")[2].partition(":")[0]) for line in lines[:20]]
    assert told == wrong
    assert lines[20:] == (["... and 10 more lines."] if content.count("\n") == 30 else [])


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_what_is_shown_as_right_is(write, name):
    with pytest.raises(PromptFileError) as caught:
        read_prompt_file(write(name, "seed\n1"))
    _, _, right = str(caught.value).partition("\nA right ")
    lines = [line.strip() for line in right.partition(":")[2].strip().splitlines()]
    (item,) = read_prompt_file(write(name, "\n".join(lines)))
    assert item.keys() == {"prompt", "seed"}


def test_a_file_that_is_not_there_is_told_by_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.txt' cannot be read: No such file"):
        read_prompt_file(tmp_path / "no.txt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompt_file("a\0.txt")


def test_a_stdin_that_is_closed_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="stdin is closed"):
        read_prompt_file("-")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a red circle\nb\n", ["a red circle", "b"]), (b'\n{"prompt": "a"}\n', ["a"])],
)
def test_stdin_is_json_lines_where_it_begins_like_them_and_text_otherwise(
    monkeypatch, content, expected
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert prompts("-") == expected


def test_a_name_may_stand_in_both_kinds_of_files(write):
    named = [{"prompt": "a", "name": "001"}, {"prompt": "b"}]
    assert read_prompt_file(write("p.csv", "prompt,name\na,001\nb,\n")) == named
    lines = '{"prompt": "a", "name": "001"}\n{"prompt": "b", "name": null}\n'
    assert read_prompt_file(write("p.jsonl", lines)) == named


def test_wrong_names_and_names_given_twice_are_told_with_their_lines(write):
    path = write("p.csv", "prompt,name\na,x\nb,a/b\n\nc,X\n")
    with pytest.raises(PromptFileError) as refused:
        read_prompt_file(path)
    assert str(refused.value).splitlines()[:2] == [
        f"{path}, line 3: name must be the name of a file of letters, digits, hyphens and single "
        "underscores between them, got 'a/b'. Write it without a folder and a suffix, such as "
        "'a_b'.",
        f"{path}, line 5: the name 'X' is that of {path}, line 2. Give each its own.",
    ]
