import pytest

from fastvideo_lightning.serve.form import FIELDS, LABELS, explain, in_page_words, read_form
from fastvideo_lightning.serve.jobs import JobState, Progress
from fastvideo_lightning.serve.view import show_error, show_progress, show_report


def test_messages_speak_of_the_labels_on_the_page() -> None:
    said = (
        "num_frames must be 1 plus a multiple of 4, 1 to 4093, got 16. "
        "The nearest that this model can make is num_frames=17."
    )
    assert in_page_words(said) == (
        "Frames must be 1 plus a multiple of 4, 1 to 4093, got 16. "
        "The nearest that this model can make is Frames 17."
    )
    assert in_page_words("Pass gpu_memory_budget=0.2, or a smaller height.") == (
        "Enter GPU memory budget (GiB) 0.2, or a smaller height."
    )
    assert in_page_words("Pass a smaller height, width or num_frames.") == (
        "Enter a smaller Height, Width or Frames."
    )
    assert in_page_words("Pass one such as guidance_scale=5.0.") == (
        "Enter one such as Guidance 5.0."
    )
    assert in_page_words("the height of a prompt") == "the height of a prompt"


def test_every_field_has_a_label() -> None:
    assert set(FIELDS) == set(LABELS)


def test_an_error_of_a_library_is_named_and_ours_is_not() -> None:
    assert explain(RuntimeError("Out of GPU memory.")) == "Out of GPU memory."
    assert explain(KeyError("x")) == "KeyError: 'x'"
    assert explain(RuntimeError()) == "RuntimeError"


def test_a_number_from_the_browser_is_whole_only_where_it_was_typed_so() -> None:
    values = dict.fromkeys(FIELDS) | {"prompt": "a", "width": 64.0, "guidance_scale": 2.5}
    request = read_form(list(values.values()))
    assert request.params.given() == {"width": 64, "guidance_scale": 2.5, "seed": 1024}
    with pytest.raises(TypeError, match=r"width must be a whole number, 1 or more, got 64\.5"):
        read_form(list((values | {"width": 64.5}).values()))


@pytest.mark.parametrize(
    ("typed", "budget"), [("12.5", 12.5), ("auto", "auto"), ("  ", None), (None, None)]
)
def test_a_budget_is_a_number_or_a_word(typed, budget) -> None:
    values = dict.fromkeys(FIELDS) | {"prompt": "a", "gpu_memory_budget": typed}
    assert read_form(list(values.values())).budget_gib == budget


def test_a_report_stands_in_a_frame_where_nothing_of_it_runs(tmp_path) -> None:
    path = tmp_path / 'a"b.report.html'
    path.write_text('<p class="x">1 video</p><script>alert(1)</script>')
    html = show_report(path)
    assert "<script" not in html
    assert "&lt;p class=&quot;x&quot;&gt;" in html
    assert " sandbox " in html
    assert 'a"b' not in html


def test_nothing_that_was_typed_becomes_markup() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    failed = Progress(JobState.FAILED, message=hostile)
    for html in (show_error(hostile), show_progress(failed)):
        assert "<img" not in html
        assert "&lt;img" in html


@pytest.mark.parametrize("state", JobState)
def test_every_state_has_a_box(state) -> None:
    assert f'class="status {state.value}"' in show_progress(Progress(state, place=1))
