import subprocess
import sys
from pathlib import Path

import pytest
from support.recorders import RecordedGenerator, read_errors, record_calls

import fastvideo_lightning
from fastvideo_lightning import libraries
from fastvideo_lightning.cli.app import run
from fastvideo_lightning.cli.options import make_options


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the command asks of the model and the generator, in order."""
    monkeypatch.chdir(tmp_path)
    return record_calls(monkeypatch)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--no-resume", "--no-resume is for a batch, and this is one video."),
        ("--fail-fast", "--fail-fast is for a batch, and this is one video."),
        ("--shard 1/2", "--shard is for a batch, and this is one video."),
        ("--no-save-video --output-path there", "--output-path says where videos are written, and"),
    ],
)
def test_an_option_about_what_is_not_done_is_refused(typed, said, capsys):
    assert run(["generate", "--prompt", "a lion", *typed.split()]) == 2
    assert said in read_errors(capsys)[0]


def test_a_wrong_file_is_a_wrong_choice(calls, capsys):
    Path("c.yaml").write_text("vae_offload: true")
    assert run(["generate", "--config", "c.yaml", "--prompt", "a"]) == 2
    assert read_errors(capsys) == [
        "Error: c.yaml: no such option: vae_offload.",
        "Did you mean vae_cpu_offload?",
    ]
    assert calls == []


WRONG = [
    (["--num_framez", "3"], "no such option: --num-framez", "Did you mean --num-frames?"),
    (
        ["--no-vae-offload"],
        "no such option: --no-vae-offload",
        "Did you mean --no-vae-cpu-offload?",
    ),
    (["--steps", "9"], "no such option: --steps", "Did you mean --num-inference-steps?"),
    (["--frames", "9"], "no such option: --frames", "Did you mean --num-frames?"),
    (["--model", ""], "--model must be a folder or a hub id, got ''.", "Leave it out for"),
    (["--model", "tiny-shape"], "No folder 'tiny-shape' here", "Did you mean tiny-shapes?"),
    (["--zzz"], "no such option: --zzz", "See fastvideo-lightning generate --help."),
    (["--height", "0"], "--height must be a whole number, 1 or more, got 0.", "--height 480"),
    (["--height", "-8"], "--height must be a whole number, 1 or more, got -8.", "--height 480"),
    (["--num-inference-steps", "0"], "--num-inference-steps must be", "--num-inference-steps 50"),
    (["--fps", "999"], "--fps must be a whole number, 1 to 240, got 999.", "--fps 16"),
    (["--seed", "-1"], "--seed must be", "--seed 1024"),
    (["--guidance-scale", "nan"], "--guidance-scale must be a finite", "--guidance-scale 5.0"),
    (["--seed", "x"], "Invalid value for '--seed': 'x'", "Pass one such as --seed 1024."),
    (["--dtype", "int4"], "Invalid value for '--dtype': 'int4'", "Did you mean --dtype int8?"),
    (["--dtype", "float16"], "Invalid value for '--dtype': 'float16'", "you mean --dtype fp16?"),
    (["--cache", "best"], "Invalid value for '--cache': 'best'", "Pass --cache first-block."),
    (["--num-gpus", "0"], "Invalid value for '--num-gpus': 0", "such as --num-gpus 1."),
    (["--gpu-memory-budget", "x"], "Invalid value for '--gpu-memory-budget'", "-budget 12"),
    (["--prompt", " "], "--prompt is empty: got ' '.", '"a red circle moves right"'),
    (["--image-path", "no.png"], "--image-path: there is no file 'no.png'.", "image file"),
    (["--config", "no.yaml"], "--config no.yaml cannot be read: No such file", "YAML file"),
    (["--output-path", "a.mp4"], "--output-path must be a folder", "Pass the folder"),
    (["--output-path", "taken"], "--output-path 'taken' cannot be written to", "'output/'"),
    (["--dtype", "fp8"], "--dtype 'fp8' needs torchao, which is not installed.", "[quantized]"),
    (["--report", "r.pdf"], "A report must end in .html, .png, .json", "report.html"),
    (["--report", "taken/r.json"], "The report 'taken/r.json' cannot be written", "report.html"),
    (["--model", "./nope"], "No folder './nope' here", "Wan-AI/"),
    (["--model", "taken"], "taken is a file.", "model_index.json"),
    (["--revision", "x"], "--revision 'x' is for models from the hub", "Leave revision out"),
    (["--lora", "no.safetensors"], "Invalid value for '--lora': There is no LoRA", "Pass a"),
    (["stray"], "Got unexpected extra argument (stray)", "in quotes, after its option: --prompt"),
    (["--seed"], "Option '--seed' requires an argument.", "Pass one such as --seed 1024."),
    (["--variant"], "Option '--variant' requires an argument.", "See fastvideo-lightning generate"),
]


@pytest.mark.parametrize(("options", "first", "second"), WRONG)
def test_a_wrong_choice_is_one_line_and_a_suggestion(
    calls, capsys, monkeypatch, options, first, second
):
    Path("taken").touch()
    with monkeypatch.context() as bare:
        bare.setattr(libraries, "find_spec", lambda package: None)
        prompt = [] if "--prompt" in options else ["--prompt", "a"]
        assert run(["generate", *prompt, *options]) == 2
    lines = read_errors(capsys)
    assert len(lines) == 2
    assert lines[0].startswith(f"Error: {first}")
    assert second in lines[1]
    assert calls == []


@pytest.mark.parametrize(
    ("words", "second"),
    [
        (["plan", "--gpu"], 'Pass one such as --gpu "RTX 4090".'),
        (["plan", "--variant"], "See fastvideo-lightning plan --help."),
        (["serve", "--port", "x"], "Pass one such as --port 7860."),
        (["serve", "--host"], "See fastvideo-lightning serve --help."),
        (["pack"], "See fastvideo-lightning pack --help."),
    ],
)
def test_what_to_type_is_of_the_command_that_was_typed(words, second, capsys):
    assert run(words) == 2
    assert read_errors(capsys)[1] == second


def test_what_can_be_known_at_once_is_told_before_an_import_of_seconds(tmp_path):
    code = (
        "import sys; from fastvideo_lightning.cli import app as cli; "
        "from fastvideo_lightning import libraries;"
        "libraries.find_spec = lambda package: None;"
        "codes = [cli.run(words.split()) for words in sys.argv[1:]];"
        "assert set(codes) == {2}, codes;"
        "heavy = {'torch', 'lightning', 'diffusers', 'transformers', 'matplotlib'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    wrong = [" ".join(options) for options, *_ in WRONG if options != ["--prompt", " "]]
    wrong = [f"generate --prompt a {options}" for options in wrong]
    wrong += ["plan --model ./nope", "plan --gpu RTX-1", "pack ./nope packed"]
    (tmp_path / "taken").touch()
    subprocess.run([sys.executable, "-c", code, *wrong], check=True, cwd=tmp_path)


def test_a_conflict_with_a_default_says_that_it_is_one(calls, capsys):
    assert run(["generate", "--prompt", "a", "--use-fsdp-inference"]) == 2
    first, *others = read_errors(capsys)
    assert first.startswith("Error: --dit-layerwise-offload cannot be combined with --use-fsdp")
    assert others == [
        "Pass --no-dit-layerwise-offload, or leave FSDP off.",
        "--dit-layerwise-offload is on unless it is turned off.",
    ]


def test_a_missing_prompt_is_a_wrong_choice(calls, capsys):
    assert run(["generate"]) == 2
    assert read_errors(capsys)[0] == "Error: --prompt is missing."


def test_an_option_before_the_command_is_pointed_to_its_place(capsys):
    assert run(["--prompt", "a"]) == 2
    assert read_errors(capsys) == [
        "Error: no such option: --prompt",
        "Say first what to do: fastvideo-lightning generate --prompt ...",
    ]


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert run(["genrate"]) == 2
    assert "generate" in read_errors(capsys)[1]


def refuse(error):
    def refuse_now(*_, **__):
        raise error

    return refuse_now


@pytest.mark.parametrize("step", ["open", "resolve"])
def test_what_the_model_refuses_before_weights_is_the_users_choice(
    calls, capsys, monkeypatch, step
):
    message = "height must be a multiple of 16, got 100. The nearest is height=96."
    for error in (ValueError(message), fastvideo_lightning.CheckpointError(message)):
        monkeypatch.setattr(RecordedGenerator, step, refuse(error))
        assert run(["generate", "--prompt", "a"]) == 2
        assert read_errors(capsys) == [
            "Error: --height must be a multiple of 16, got 100.",
            "The nearest is --height 96.",
        ]


@pytest.mark.parametrize("step", ["setup", "generate_video"])
def test_what_fails_while_running_ends_with_one(calls, capsys, monkeypatch, step):
    error = RuntimeError("Out of memory while decoding. Pass vae_tiling=True.\nmore\nlines")
    monkeypatch.setattr(RecordedGenerator, step, refuse(error))
    assert run(["generate", "--prompt", "a"]) == 1
    assert read_errors(capsys) == ["Error: Out of memory while decoding.", "Pass --vae-tiling."]
    assert calls[-1] == ("close",)


def test_an_error_without_words_is_named_by_its_class(calls, capsys, monkeypatch):
    monkeypatch.setattr(RecordedGenerator, "setup", refuse(KeyError("x")))
    assert run(["generate", "--prompt", "a"]) == 1
    assert read_errors(capsys) == ["Error: KeyError: 'x'", "Add --debug to see where it failed."]


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_shows_the_traceback_of_both_kinds_of_error(calls, capsys, monkeypatch, where):
    def debug(*options):
        words = ["generate", "--prompt", "a", *options]
        return ["--debug", *words] if where == "before" else [*words, "--debug"]

    assert run(debug("--height", "0")) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(RecordedGenerator, "setup", refuse(RuntimeError("broken")))
    assert run(debug()) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "Error: broken" in text


def test_ctrl_c_ends_with_130_and_no_traceback(calls, capsys, monkeypatch):
    monkeypatch.setattr(RecordedGenerator, "generate_video", refuse(KeyboardInterrupt()))
    assert run(["generate", "--prompt", "a"]) == 130
    assert read_errors(capsys) == [
        "",  # the terminal's line holds ^C
        "Stopped. The video was not made. Run the same command again to make it.",
    ]
    assert calls[-1] == ("close",)


REPEATED = {
    "generate": [
        [(option.opts[0], None if option.secondary_opts else "1")] * 2
        for option in make_options()
        if not option.multiple
    ],
    "plan": [[("--gpu", "RTX 4090"), ("--gpu", "H100")], [("--compile", None)] * 2],
    "serve": [[("--port", "1"), ("--port", "2")], [("--config", "a"), ("--config", "b")]],
    "pack": [[("--dtype", "bf16"), ("--dtype", "fp16")], [("--variant", "a")] * 2],
}


@pytest.mark.parametrize(
    ("command", "pairs"), [(name, pairs) for name, all_ in REPEATED.items() for pairs in all_]
)
def test_an_option_that_is_given_twice_is_refused_by_its_name(calls, capsys, command, pairs):
    words = [word for pair in pairs for word in pair if word is not None]
    assert run([command, *words]) == 2
    name = pairs[0][0]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"Error: {name}")
    assert said[0].endswith("is given twice.")
    assert said[1].startswith("Keep one of the two")


def test_a_flag_and_its_opposite_are_refused(calls, capsys):
    assert run(["generate", "--prompt", "a", "--compile", "--no-compile"]) == 2
    assert "--compile (or --no-compile) is given twice." in capsys.readouterr().err


def test_a_second_prompt_is_told_where_several_go(calls, capsys):
    assert run(["generate", "--prompt", "a", "--prompt", "b"]) == 2
    assert "--prompts prompts.txt" in capsys.readouterr().err


def test_what_may_be_repeated_is_kept_whole(calls):
    words = ["--lora", "some/one", "--lora", "some/two", "--debug", "--debug"]
    assert run(["generate", "--prompt", "a", *words]) == 0
