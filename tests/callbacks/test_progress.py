import io
import sys

import lightning as L
import pytest
from rich.console import Console
from rich.text import Text

from fastvideo_lightning.callbacks import ProgressBar

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def make_console(*, terminal=True, width=120):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, _environ={})


def make_fabric(bar):
    return L.Fabric(accelerator="cpu", devices=1, callbacks=[bar])


def run(fabric, *, videos=1, steps=4, until=None):
    """Announce a run's moments; stop before the moment `until` = (video, step)."""
    fabric.call("on_predict_start", fabric=fabric, module=None, num_batches=videos)
    for video in range(videos):
        fabric.call("on_predict_batch_start", batch={}, batch_idx=video)
        for step in range(steps):
            if until == (video, step):
                return
            fabric.call("on_denoise_step_start", module=None, step=step, num_steps=steps)
            fabric.call("on_denoise_step_end", module=None, step=step, num_steps=steps)
        fabric.call("on_predict_batch_end", outputs=None, batch={}, batch_idx=video)
    fabric.call("on_predict_end", fabric=fabric, module=None)


def last_screen(text):
    """What stays on the terminal: the lines that were drawn last."""
    return text.rsplit("\x1b[2K", 1)[-1]


def test_a_single_video_leaves_one_line_with_its_steps():
    console = make_console()
    run(make_fabric(ProgressBar(console=console)), steps=4)
    screen = last_screen(console.file.getvalue())
    assert "video: done" in screen
    assert "4/4" in screen
    assert "all videos" not in screen


def test_lines_leave_room_for_what_a_terminal_writes_on_ctrl_c():
    console = make_console(width=60)
    bar = ProgressBar(console=console)
    run(make_fabric(bar), videos=2, steps=4, until=(1, 2))
    bar.teardown()
    drawn = Text.from_ansi(last_screen(console.file.getvalue())).plain.splitlines()
    assert any(line.rstrip().endswith("left") for line in drawn)
    assert max(map(len, drawn)) <= console.width - len("^C")


def test_several_videos_have_a_line_for_all_of_them_and_one_for_the_current_one():
    console = make_console()
    bar = ProgressBar(console=console)
    fabric = make_fabric(bar)
    run(fabric, videos=3, steps=4, until=(1, 2))
    assert lines(bar) == [("all videos", 1), ("video 2 of 3: denoise", 2)]
    run(fabric, videos=3, steps=4)
    assert "3/3" in last_screen(console.file.getvalue())
    assert "video 3" not in last_screen(console.file.getvalue())


def test_the_line_of_all_moves_with_the_steps_so_that_the_time_left_is_known_early():
    bar = ProgressBar(console=make_console())
    run(make_fabric(bar), videos=2, steps=4, until=(0, 3))
    assert bar._bars.tasks[0].completed == pytest.approx(0.5)


def test_a_video_that_is_being_written_has_its_line_beside_the_next_one():
    bar = ProgressBar(console=make_console())
    fabric = make_fabric(bar)
    run(fabric, videos=2, steps=2, until=(1, 0))
    assert lines(bar) == [("all videos", 1), ("video 2 of 2: encode", 0)]
    fabric.call("on_predict_batch_end", outputs=None, batch={}, batch_idx=1)
    fabric.call("on_write_start", video=None)
    assert lines(bar)[1:] == [("video 2 of 2: write", 0)]
    fabric.call("on_predict_batch_start", batch={}, batch_idx=2)
    assert [line for line, _ in lines(bar)[1:]] == ["video 2 of 2: write", "video 3 of 2: encode"]
    fabric.call("on_write_end", video=None)
    assert [line for line, _ in lines(bar)[1:]] == ["video 3 of 2: encode"]
    fabric.call("teardown")
    fabric.call("on_write_end", video=None)


def lines(bar):
    return [(task.description, int(task.completed)) for task in bar._bars.tasks if task.visible]


@pytest.mark.parametrize(
    ("error", "word"), [(RuntimeError(), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_video_that_breaks_leaves_its_line_and_the_next_one_begins_anew(error, word):
    console = make_console()
    bar = ProgressBar(console=console)
    fabric = make_fabric(bar)
    run(fabric, videos=3, until=(1, 2))
    fabric.call("on_exception", fabric=fabric, module=None, exception=error)
    assert f"video 2 of 3: {word}" in last_screen(console.file.getvalue())
    fabric.call("on_predict_batch_start", batch={}, batch_idx=2)
    assert lines(bar) == [("all videos", 2), ("video 3 of 3: encode", 0)]
    fabric.call("teardown")


def test_stages_follow_the_loop():
    bar = ProgressBar(console=make_console())
    fabric = make_fabric(bar)
    run(fabric, steps=2, until=(0, 0))
    assert stage(bar) == "video: encode"
    fabric.call("on_denoise_step_start", module=None, step=0, num_steps=2)
    assert stage(bar) == "video: denoise"
    fabric.call("on_denoise_step_end", module=None, step=0, num_steps=2)
    assert stage(bar) == "video: denoise"
    fabric.call("on_denoise_step_end", module=None, step=1, num_steps=2)
    assert stage(bar) == "video: decode"
    fabric.call("teardown")


def stage(bar):
    return bar._bars.tasks[-1].description


@pytest.mark.parametrize("moment", ["on_exception", "teardown"])
def test_after_a_broken_run_the_cursor_is_back_and_drawing_has_stopped(moment):
    console = make_console()
    fabric = make_fabric(ProgressBar(console=console))
    run(fabric, until=(0, 2))
    fabric.call(moment, fabric=fabric, module=None, exception=RuntimeError())
    drawn = console.file.getvalue()
    assert drawn.rindex(SHOW_CURSOR) > drawn.rindex(HIDE_CURSOR)
    fabric.call("on_denoise_step_end", module=None, step=2, num_steps=4)
    assert console.file.getvalue() == drawn


def test_the_same_bar_serves_the_next_run():
    console = make_console()
    fabric = make_fabric(ProgressBar(console=console))
    run(fabric, until=(0, 1))
    fabric.call("on_exception", fabric=fabric, module=None, exception=RuntimeError())
    run(fabric, steps=7)
    assert "7/7" in last_screen(console.file.getvalue())


def test_a_dataset_of_unknown_length_still_counts_its_videos():
    console = make_console()
    fabric = make_fabric(ProgressBar(console=console))
    fabric.call("on_predict_start", fabric=fabric, module=None, num_batches=None)
    fabric.call("on_predict_batch_start", batch={}, batch_idx=2)
    fabric.call("teardown")
    assert "video 3: encode" in console.file.getvalue()


def test_nothing_is_drawn_without_a_terminal(capsys):
    run(make_fabric(ProgressBar()))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    console = make_console(terminal=False)
    run(make_fabric(ProgressBar(console=console)))
    assert console.file.getvalue() == ""


def test_what_is_printed_meanwhile_goes_to_stdout_where_that_is_no_terminal(capsys):
    console = make_console()
    run(make_fabric(ProgressBar(console=console)), until=(0, 2))
    print("output/a.mp4")
    assert capsys.readouterr().out == "output/a.mp4\n"
    assert "a.mp4" not in console.file.getvalue()


def test_without_colours_the_bars_are_plain(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    run(make_fabric(ProgressBar(console=console)))
    assert "4/4" in console.file.getvalue()
    assert "\x1b[3" not in console.file.getvalue()


def test_bars_are_drawn_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    run(make_fabric(ProgressBar()))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "4/4" in captured.err


def test_only_the_first_process_draws(monkeypatch):
    console = make_console()
    fabric = make_fabric(ProgressBar(console=console))
    monkeypatch.setattr(L.Fabric, "is_global_zero", False)
    run(fabric)
    assert console.file.getvalue() == ""
