import os
from multiprocessing import get_context

import pytest

from fastvideo_lightning.output.files import MAX_STEM_BYTES, give_name, safe_stem


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("a red circle, moves right.", "a_red_circle_moves_right"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\temp\\x", "C_temp_x"),
        (".hidden", "hidden"),
        ("-rf *", "rf"),
        ("CON", "video_CON"),
        ("Lpt1", "video_Lpt1"),
        ("com¹", "video_com1"),
        ("aux.txt", "aux_txt"),
        ("", "video"),
        ("...", "video"),
        ("😀", "video"),
        ("\u2764\ufe0f", "video"),
        ("\U0001f3f3\ufe0f\u200d\U0001f308", "video"),
        ("\u2600\ufe0f sun", "sun"),
        ("1\ufe0f\u20e3", "1\u20e3"),
        ("\u0301\u0301", "video"),
        ("-\u0301", "video"),
        ("\u3164 \u115f", "video"),
        ("a\ufe0f \U000e0100b", "a_b"),
        ("a\0b\nc\u202ed", "a_b_c_d"),
        ("broken \udcff bytes", "broken_bytes"),
        ("カメラが動く", "カメラが動く"),
        ("e\u0301te\u0301", "été"),
    ],
)
def test_a_prompt_becomes_a_name_that_every_file_system_takes(prompt, stem):
    assert safe_stem(prompt) == stem


@pytest.mark.parametrize("letter", ["a", "é", "漢", "\U00020000"])
def test_a_long_prompt_is_cut_by_bytes_between_letters(letter):
    stem = safe_stem(letter * 500)
    assert set(stem) == {letter}
    assert MAX_STEM_BYTES - 4 < len(stem.encode()) <= MAX_STEM_BYTES


def finish(folder, prompt="a b", suffix=".mp4"):
    """Have a file that is whole take its name."""
    folder.mkdir(exist_ok=True)
    part = folder / f".{os.urandom(4).hex()}{suffix}"
    part.write_bytes(b"whole")
    return give_name(part, prompt)


def test_the_second_and_third_file_of_a_prompt_get_a_number(tmp_path):
    names = [finish(tmp_path).name for _ in range(3)]
    assert names == ["a_b.mp4", "a_b_1.mp4", "a_b_2.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert finish(tmp_path, suffix=".png").name == "a_b.png"


@pytest.mark.parametrize("prompt", ["..", "../x", "/etc/x", "a/../../b", "\\\\host\\x"])
def test_a_named_file_lies_in_the_folder_itself(tmp_path, prompt):
    assert finish(tmp_path, prompt).resolve().parent == tmp_path.resolve()


def test_a_dangling_link_is_not_followed(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "elsewhere")
    assert finish(tmp_path, "a").name == "a_1.mp4"
    assert not (tmp_path / "elsewhere").exists()


def test_a_name_that_is_taken_at_the_last_moment_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "a_b.mp4").write_bytes(b"theirs")
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    assert finish(tmp_path).name == "a_b_1.mp4"
    assert (tmp_path / "a_b.mp4").read_bytes() == b"theirs"


def _finish_ten(folder):
    return [finish(folder).name for _ in range(10)]


def test_two_processes_never_get_the_same_name(tmp_path):
    with get_context("fork").Pool(2) as pool:
        names = sum(pool.map(_finish_ten, [tmp_path] * 2), [])
    assert len(set(names)) == 20
    assert {path.name for path in tmp_path.iterdir()} == set(names)
