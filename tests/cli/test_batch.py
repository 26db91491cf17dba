import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.recorders import RecordedBatch, read_errors, record_calls

import fastvideo_lightning
from fastvideo_lightning.batch import Entry, Manifest, StorageError
from fastvideo_lightning.batch.manifest import sha256_of
from fastvideo_lightning.cli.app import run
from fastvideo_lightning.cli.batch import _count, say_all_there
from fastvideo_lightning.output.video import GeneratedVideo


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the command asks of the model and the generator, in order."""
    monkeypatch.chdir(tmp_path)
    return record_calls(monkeypatch)


WRONG = [
    (["--prompts", "p.txt", "--prompt", "a"], "--prompt and --prompts are both given.", "Keep one"),
    (["--prompts", "no.txt"], "--prompts: 'no.txt' cannot be read: No such file", "existing"),
    (["--prompts", "p.doc"], "--prompts must be a file that ends in .txt, .jsonl, .csv", "Pass a"),
    (["--prompts", "p.txt", "--no-save-video"], "--prompts always writes its videos.", "Leave"),
    (["--prompts", "-", "--num-gpus", "2"], "--prompts from stdin reach one process", "Write them"),
    (["--prompts", "p.txt", "--seeds", "0"], "--seeds must be a whole number, 1 or more", "Pass"),
    (
        ["--prompt", "a", "--seeds", "20000"],
        "--seeds must be 10000 or less, got 20000.",
        "--seed 2",
    ),
    (["--prompt", " ", "--seeds", "2"], "--prompt is empty", "Describe"),
    (["--seeds", "2"], "--prompt is missing.", "Describe"),
    (["--prompt", "a", "--seeds", "2", "--no-save-video"], "--seeds always writes", "Leave"),
    (["--prompts", "bad.jsonl"], "bad.jsonl, line 2: not JSON", "Write one object a line"),
]


@pytest.mark.parametrize(("options", "first", "second"), WRONG)
def test_a_wrong_choice_is_told_before_a_model_is_loaded(calls, capsys, options, first, second):
    Path("p.txt").write_text("a")
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"prompt"')
    assert run(["generate", *options]) == 2
    lines = read_errors(capsys)
    assert lines[0].startswith(f"Error: {first}")
    assert second in lines[1]
    assert calls == []


def test_what_is_wrong_in_a_file_is_told_in_the_files_words(calls, capsys):
    Path("p.csv").write_text("prompt,num_frames\na,many\nb\n")
    assert run(["generate", "--prompts", "p.csv"]) == 2
    assert read_errors(capsys) == [
        "Error: p.csv, line 2: num_frames must be a whole number, 1 or more, got 'many'.",
        "Pass one such as num_frames=81, or leave it out for the default.",
        "p.csv, line 3: expected 2 columns as in the header, got 1. Quote texts with commas.",
        "A right file:",
        "  prompt,seed",
        '  "a red circle, moving right",7',
    ]


def test_prompts_and_options_reach_the_generator(calls, capsys):
    Path("p.jsonl").write_text('{"prompt": "a", "seed": 3}\n{"prompt": "b"}\n')
    words = "--prompts p.jsonl --seed 5 --fps 8 --no-resume --fail-fast --output-path there"
    assert run(["generate", *words.split()]) == 0
    asked = next(call for call in calls if call[0] == "batch")
    assert asked[1] == [{"prompt": "a", "seed": 3}, {"prompt": "b"}]
    assert asked[2] == {
        **{"output_path": "there", "resume": False, "fail_fast": True},
        **{"shard": "1/1", "seeds": 1},
        **{"seed": 5, "fps": 8},
    }
    captured = capsys.readouterr()
    assert captured.out == "there/0.mp4\nthere/1.mp4\n"
    assert captured.err == "2 of 2 videos are in there.\n"


def test_one_prompt_with_seeds_is_a_batch_also_from_a_file_of_options(calls, capsys):
    Path("c.yaml").write_text("seeds: 4\nresume: false")
    assert run(["generate", "--prompt", "a", "--config", "c.yaml", "--output-path", "there"]) == 0
    asked = next(call for call in calls if call[0] == "batch")
    assert asked[1] == [{"prompt": "a"}]
    assert (asked[2]["seeds"], asked[2]["resume"]) == (4, False)


def stop_after_one(error):
    def iterate(batch):
        batch.num_made = 1
        batch.on_written("there/0.mp4")
        yield GeneratedVideo(np.zeros((1, 2, 2, 3), np.uint8), "a", 7, 16, video_path="there/0.mp4")
        if error:
            raise error

    return iterate


def test_ctrl_c_says_what_was_made_and_how_to_go_on(calls, capsys, monkeypatch):
    Path("p.txt").write_text("a\nb\nc")
    monkeypatch.setattr(RecordedBatch, "__iter__", stop_after_one(KeyboardInterrupt()))
    assert run(["generate", "--prompts", "p.txt", "--output-path", "there"]) == 130
    captured = capsys.readouterr()
    assert captured.out == "there/0.mp4\n"
    assert captured.err == (
        "Stopped: 1 of 3 videos is in there. Run the same command again to make the others.\n"
    )
    assert calls[-1] == ("close",)


def test_ctrl_c_counts_the_videos_of_all_processes(calls, capsys, monkeypatch):
    Path("p.txt").write_text("a\nb\nc")
    monkeypatch.setattr(RecordedBatch, "__iter__", stop_after_one(KeyboardInterrupt()))
    monkeypatch.setattr(RecordedBatch, "num_there", 2)
    assert run(["generate", "--prompts", "p.txt", "--output-path", "there"]) == 130
    assert "Stopped: 2 of 3 videos are in there." in capsys.readouterr().err


def test_what_ends_a_batch_is_told_beside_what_was_made(calls, capsys, monkeypatch):
    Path("p.txt").write_text("a\nb")
    error = StorageError("a.mp4 could not be written: No space left. Free some space.")
    monkeypatch.setattr(RecordedBatch, "__iter__", stop_after_one(error))
    assert run(["generate", "--prompts", "p.txt", "--output-path", "there"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Stopped: 1 of 2 videos is in there. Run the same command again to make the others.",
        "Error: a.mp4 could not be written: No space left.",
        "Free some space.",
    ]


def test_of_a_folder_that_was_removed_no_video_is_said_to_be_there(calls, capsys, monkeypatch):
    Path("p.txt").write_text("a\nb")
    error = StorageError("'there' was removed while videos were being made. Run the same again.")
    stop = stop_after_one(error)

    def remove(batch):
        os.rmdir("there")
        yield from stop(batch)

    monkeypatch.setattr(RecordedBatch, "__iter__", remove)
    assert run(["generate", "--prompts", "p.txt", "--output-path", "there"]) == 1
    assert "Stopped: 0 of 2 videos are in there." in capsys.readouterr().err


def test_failures_are_counted_and_end_with_one(calls, capsys, monkeypatch):
    Path("p.txt").write_text("a\nb")
    monkeypatch.setattr(RecordedBatch, "__iter__", stop_after_one(None))
    monkeypatch.setattr(RecordedBatch, "failed", [Entry("b", 8, "failed")], raising=False)
    assert run(["generate", "--prompts", "p.txt", "--output-path", "there/"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: 1 of 2 videos failed, as there/manifest.jsonl says.",
        "Run the same command again to try them once more.",
    ]


PROMPTS = "".join(f"a {colour} circle moves right\n" for colour in ("red", "green", "blue"))


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fastvideo_lightning.__file__).parents[1])}
GENERATE = [sys.executable, "-m", "fastvideo_lightning", "generate", "--accelerator", "cpu"]


@pytest.mark.slow
def test_two_processes_share_a_batch_one_folder_and_one_manifest(tmp_path):
    (tmp_path / "p.txt").write_text("a red circle\n" * 3)
    words = [*GENERATE, "--prompts", "p.txt", "--num-inference-steps", "2", "--num-gpus", "2"]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    videos = {str(path.relative_to(tmp_path)) for path in (tmp_path / "output").glob("*.mp4")}
    assert set(done.stdout.splitlines()) == videos
    assert done.stderr.count("videos are in output/.") == 1
    assert "3 of 3 videos are in output/." in done.stderr
    entries = Manifest(tmp_path / "output").read()
    assert {f"output/{entry.file}" for entry in entries} == videos
    assert sorted(entry.seed for entry in entries) == [1024, 1025, 1026]
    assert all(sha256_of(tmp_path / "output" / e.file) == e.sha256 for e in entries)


@pytest.mark.slow
def test_a_batch_that_was_killed_is_finished_by_the_same_command(tmp_path):
    (tmp_path / "p.txt").write_text(PROMPTS)
    words = [*GENERATE, "--prompts", "p.txt", "--num-inference-steps", "4"]
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        told = [process.stdout.readline().decode().strip()]
        process.kill()
        told += process.stdout.read().decode().splitlines()
    assert told[0] == "output/a_red_circle_moves_right.mp4"
    made = sorted((tmp_path / "output").glob("*.mp4"))
    before = {path: path.stat().st_mtime_ns for path in made}
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told += done.stdout.splitlines()
    assert {tmp_path / path for path in told} == set((tmp_path / "output").glob("*.mp4"))
    assert len(told) <= 4, "only the last before the kill may be told of again"
    assert f"{len(made)} of 3 videos" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == before
    assert len(list((tmp_path / "output").glob("*.mp4"))) == 3
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "3 of 3 videos are in output/ already." in done.stderr


@pytest.mark.parametrize(
    ("number", "total", "words"),
    [(0, 1, "0 of 1 video is"), (1, 1, "1 of 1 video is"), (0, 2, "0 of 2 videos are")],
)
def test_videos_are_counted_as_one_says_it(capsys, number, total, words):
    assert _count(number, total) == words
    say_all_there(total, "out")
    anew = "it anew" if total == 1 else "them anew"
    assert f"--no-resume makes {anew}." in capsys.readouterr().err


def test_where_nothing_is_made_it_is_said_that_no_report_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a red circle")
    options = "--num-inference-steps 1 --num-frames 9 --quiet --prompts p.txt --report r.json"
    words = ["generate", *options.split()]
    assert run(words) == 0
    Path("r.json").unlink()
    assert run([word for word in words if word != "--quiet"]) == 0
    assert "r.json is not written" in capsys.readouterr().err
    assert not Path("r.json").exists()


@pytest.mark.parametrize(
    ("in_file", "typed", "verb"),
    [
        ("prompts: p.txt", ["--prompt", "b"], "generate"),
        ("prompt: b", ["--prompts", "p.txt"], "batch"),
    ],
)
def test_a_prompt_that_is_typed_takes_the_place_of_those_in_the_file(calls, in_file, typed, verb):
    Path("p.txt").write_text("a\n")
    Path("c.yaml").write_text(in_file)
    assert run(["generate", "--config", "c.yaml", *typed]) == 0
    assert verb in [call[0] for call in calls]


def test_ctrl_c_while_the_libraries_load_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(request):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvideo_lightning.cli.generate._open", interrupt)
    (tmp_path / "p.txt").write_text("a red circle")
    options = ["--prompts", str(tmp_path / "p.txt"), "--output-path", str(tmp_path / "out")]
    assert run(["generate", *options]) == 130
    assert "Run the same command again" in capsys.readouterr().err
