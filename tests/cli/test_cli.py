import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path

import av
import pytest
from support.recorders import RecordedGenerator, record_calls

import fastvideo_lightning
from fastvideo_lightning.cli.app import cli, run
from fastvideo_lightning.config import OffloadConfig, SamplingParams

COMMAND = [sys.executable, "-m", "fastvideo_lightning"]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the command asks of the model and the generator, in order."""
    monkeypatch.chdir(tmp_path)
    return record_calls(monkeypatch)


def call(calls, name):
    return next(call[1:] for call in calls if call[0] == name)


def test_the_path_of_the_video_is_all_that_goes_to_stdout(calls, capsys):
    assert run(["generate", "--prompt", "a red circle"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "output/video.mp4\n"
    assert captured.err == "96x64, 17 frames at 16 fps, seed 7: made in 2.5 s\n"


def test_quiet_leaves_the_path_and_draws_no_bar(calls, capsys):
    assert run(["generate", "--prompt", "a", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("output/video.mp4\n", "")
    assert call(calls, "open")[2]["progress"] is False
    assert run(["generate", "--prompt", "a"]) == 0
    assert capsys.readouterr().err


def test_without_saving_stdout_stays_empty(calls, capsys):
    assert run(["generate", "--prompt", "a", "--no-save-video"]) == 0
    assert capsys.readouterr().out == ""
    assert not Path("output").exists()


def test_parameters_are_resolved_before_weights_are_read(calls):
    run(["generate", "--prompt", "a"])
    moments = ["open", "resolve", "plan", "setup", "generate", "close"]
    assert [call[0] for call in calls] == moments


def test_what_is_not_given_is_the_default_of_the_python_names(calls):
    run(["generate", "--prompt", "a"])
    model, config, options = call(calls, "open")
    assert (model, config) == ("tiny-shapes", OffloadConfig())
    machine = {"num_gpus": 1, "accelerator": "auto", "dtype": "auto", "allow_pickle": False}
    assert options == {**machine, "callbacks": [], "progress": True}
    assert call(calls, "resolve") == ("a", {"seed": 1024})


FLAGS = [field.name for field in fields(OffloadConfig) if isinstance(field.default, bool)]


@pytest.mark.parametrize("kind", ["auto", "mapped", "pinned", "pageable"])
def test_the_kind_of_host_memory_is_a_choice(calls, kind):
    assert run(["generate", "--prompt", "a", "--host-memory", kind]) == 0
    assert call(calls, "open")[1] == OffloadConfig(host_memory=kind)


def test_the_shard_transport_is_a_choice(calls):
    assert run(["generate", "--prompt", "a", "--shard-transport", "local"]) == 0
    assert call(calls, "open")[1] == OffloadConfig(shard_transport="local")


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        (["--pair-guidance", "auto"], "auto"),
        (["--pair_guidance=auto"], "auto"),
        (["--pair-guidance", "off"], False),
        (["--pair-guidance=on"], True),
    ],
)
def test_pairs_may_be_left_to_the_plan(calls, typed, value):
    assert run(["generate", "--prompt", "a", *typed]) == 0
    assert call(calls, "open")[1] == OffloadConfig(pair_guidance=value)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("spelling", ["-", "_"])
def test_every_flag_can_be_turned_on_and_off_with_hyphens_or_underscores(calls, flag, spelling):
    name = flag.replace("_", spelling)
    others = {"dit_layerwise_offload": False} if flag == "use_fsdp_inference" else {}
    extra = ["--no-dit-layerwise-offload"] if others else []
    for option, value in ((f"--{name}", True), (f"--no{spelling}{name}", False)):
        calls.clear()
        assert run(["generate", "--prompt", "a", *extra, option]) == 0
        assert call(calls, "open")[1] == OffloadConfig(**others, **{flag: value})


SAMPLING = {
    "negative_prompt": "blurry",
    "height": 48,
    "width": 96,
    "num_frames": 33,
    "fps": 24,
    "num_inference_steps": 9,
    "guidance_scale": 2.5,
    "guidance_scale_2": 3.5,
    "seed": 7,
    "image_path": "first.png",
    "last_image_path": "last.png",
    "video_path": "first.mp4",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
    "flow_shift": 4.0,
    "max_sequence_length": 77,
    "pipeline_arguments": {"strength": 0.5},
}


@pytest.mark.parametrize("spelling", ["-", "_"])
def test_every_sampling_field_has_an_option_that_reaches_the_generator(calls, spelling):
    assert set(SAMPLING) == {field.name for field in fields(SamplingParams)}
    for name in ("first.png", "last.png", "first.mp4"):
        Path(name).touch()
    options = [
        word
        for name, value in SAMPLING.items()
        for word in (f"--{name.replace('_', spelling)}", str(value))
    ]
    assert run(["generate", "--prompt", "a", *options]) == 0
    assert call(calls, "resolve") == ("a", SAMPLING)
    assert call(calls, "generate") == ("a", "output/", True)


def test_the_options_of_the_machine_reach_the_generator(calls):
    options = "--model a/m --dtype bf16 --revision r --variant fp16 --accelerator cpu --num-gpus 2"
    assert run(["generate", "--prompt", "a", "--output-path", "there", *options.split()]) == 0
    model, _, opening = call(calls, "open")
    assert (model, opening["dtype"]) == ("a/m", "bf16")
    assert (opening["revision"], opening["variant"]) == ("r", "fp16")
    assert (opening["num_gpus"], opening["accelerator"]) == (2, "cpu")
    assert call(calls, "generate")[1] == "there"


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(calls):
    Path("c.yaml").write_text(
        "prompt: a\nnum-frames: 9\nseed: 3\nvae_cpu_offload: false\nmodel: a/m\nguidance-scale: 2\n"
    )
    assert run(["generate", "--config", "c.yaml", "--seed", "4", "--model", "a/n"]) == 0
    _, sampling = call(calls, "resolve")
    assert sampling == {"num_frames": 9, "seed": 4, "guidance_scale": 2.0}
    assert call(calls, "open")[1] == OffloadConfig(vae_cpu_offload=False)
    assert call(calls, "open")[0] == "a/n"


def test_the_command_line_wins_in_both_directions_of_a_flag(calls):
    Path("c.yaml").write_text("prompt: a\nvae-cpu-offload: false\npin-cpu-memory: true\n")
    run(["generate", "--config", "c.yaml", "--vae-cpu-offload", "--no-pin-cpu-memory"])
    assert call(calls, "open")[1] == OffloadConfig(vae_cpu_offload=True, pin_cpu_memory=False)


def test_our_warnings_are_one_line_each_and_those_of_libraries_are_not_shown(
    calls, capsys, monkeypatch
):
    def warn(*_, **__):
        for _ in range(2):
            warnings.warn_explicit("height=8 is small", UserWarning, __init__path, 1)
        warnings.warn_explicit("noise", UserWarning, "/elsewhere/library.py", 1)

    __init__path = fastvideo_lightning.__file__
    monkeypatch.setattr(RecordedGenerator, "resolve", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run(["generate", "--prompt", "a"])
    assert capsys.readouterr().err.splitlines()[0] == "Warning: --height 8 is small"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run(["generate", "--prompt", "a"])
    assert "noise" not in capsys.readouterr().err


def test_help_names_every_option_and_its_default(capsys):
    assert run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in FLAGS:
        assert f"--[no-]{flag.replace('_', '-')} " in text
    for name in (
        "host_memory",
        "shard_transport",
        *(field.name for field in fields(SamplingParams)),
    ):
        assert f"--{name.replace('_', '-')} " in text
    for group in ("Prompt and output:", "Model and machine:", "Where weights live:", "Examples:"):
        assert group in text
    assert "[default: 1024]" in text


def test_help_needs_nothing_that_takes_seconds_to_import():
    code = (
        "import sys; from fastvideo_lightning.cli.app import run; run(['generate', '--help']);"
        "heavy = {'torch', 'lightning', 'diffusers', 'transformers', 'numpy', 'av', 'yaml'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("chosen", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(calls, monkeypatch, chosen, expected):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    assert run(["generate", "--prompt", "a"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_version_is_the_packages(capsys):
    assert run(["--version"]) == 0
    assert fastvideo_lightning.__version__ in capsys.readouterr().out


def test_the_module_form_is_the_same_command(tmp_path):
    done = subprocess.run(
        [*COMMAND, "generate", "--heigth", "3"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: no such option: --heigth\nDid you mean --height?\n"


ENDLESS = """
import time
import numpy as np
from fastvideo_lightning.cli import app as cli
from fastvideo_lightning.output import video as output
from fastvideo_lightning.cli import generate
def encode(frames, path, *_):
    path.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
output._encode_mp4 = encode
video = output.GeneratedVideo(np.zeros((1, 8, 8, 3), np.uint8), "a", 1, 8)
generate._make_video = lambda request: video.save_as_prompt("videos")
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_half_file_and_no_empty_one(tmp_path, hears_ctrl_c, number, code):
    words = [sys.executable, "-c", ENDLESS, "generate", "--prompt", "a"]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        (half,) = (tmp_path / "videos").iterdir()
        assert half.name.startswith("."), "it has no name as yet"
        time.sleep(0.1)
        process.send_signal(number)
        _, text = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in text
    assert list((tmp_path / "videos").iterdir()) == []


def test_the_main_command_makes_a_video_and_says_only_where(tmp_path):
    done = subprocess.run(
        [*COMMAND, "generate", "--accelerator", "cpu", "--prompt", "a red circle moves right"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(fastvideo_lightning.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    path = Path("output") / "a_red_circle_moves_right.mp4"
    assert done.stdout == f"{path}\n"
    with av.open(str(tmp_path / path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 17
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("64x64, 17 frames at 8 fps, seed 1024: made in ")
    assert len(lines) == 2, "beside what it made, it says that flags have no effect on a CPU"


def test_the_list_of_commands_cuts_no_sentence_off(capsys):
    assert run(["--help"]) == 0
    lines = capsys.readouterr().out.partition("Commands:")[2].partition("Start with")[0]
    assert set(cli.commands) <= set(lines.split())
    assert "..." not in lines
