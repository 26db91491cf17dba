import json

import pytest
from support.recorders import read_errors

from fastvideo_lightning.cli.app import run


@pytest.fixture
def folder(checkpoint):
    return str(checkpoint("t2v"))


def plan_of(capsys, *arguments):
    assert run(["plan", *arguments]) == 0
    return capsys.readouterr().out


SIZE = ("--height", "32", "--width", "48", "--num-frames", "5")


def test_a_plan_for_a_card_that_is_not_here_shows_all_that_is_promised(folder, capsys):
    text = plan_of(capsys, "--model", folder, *SIZE, "--gpu", "RTX 4090")
    for word in ("transformer", "text_encoder", "vae", "encode", "denoise", "decode"):
        assert word in text
    for word in ("resident", "time, s", "bound by", "host memory", "RTX 4090", "Smallest possible"):
        assert word in text
    assert "--no-dit-layerwise-offload" in text


def test_without_a_gpu_and_a_card_there_are_bytes_and_no_times(folder, capsys):
    text = plan_of(capsys, "--model", folder, *SIZE)
    assert "time, s" not in text
    assert "No times" in text
    assert "streamed" in text


def test_json_has_the_same_and_flags_that_are_given_are_kept(folder, capsys):
    arguments = ("--gpu", "rtx4090", "--gpu-memory-budget", "12", "--vae-cpu-offload", "--json")
    plan = json.loads(plan_of(capsys, "--model", folder, *SIZE, *arguments))
    assert plan["machine"]["name"] == "RTX 4090"
    assert plan["budget_bytes"] == 12 * 2**30
    assert plan["flags"]["vae_cpu_offload"] is True
    assert plan["request"]["num_frames"] == 5
    assert [stage["name"] for stage in plan["stages"]] == ["encode", "denoise", "decode"]


def test_what_to_type_has_whatever_the_plan_counts_on(folder, capsys):
    asked = ["--dtype", "fp8", "--cuda-graphs", "--host-memory", "mapped", "--vae-tiling"]
    asked += ["--gpu-memory-budget", "12"]
    plan = json.loads(plan_of(capsys, "--model", folder, *SIZE, "--gpu", "H100", *asked, "--json"))
    words = plan["command_line"]
    assert "--dtype fp8 " in words
    assert words.endswith("--vae-tiling --cuda-graphs --host-memory mapped")
    again = [*words.split(), "--gpu", "H100", "--gpu-memory-budget", "12", "--json"]
    assert json.loads(plan_of(capsys, "--model", folder, *SIZE, *again)) == plan


def test_several_gpus_are_in_the_plan_and_in_what_to_type(folder, capsys):
    arguments = ["--gpu", "RTX 4090", "--num-gpus", "2"]
    plan = json.loads(plan_of(capsys, "--model", folder, *SIZE, *arguments, "--json"))
    assert plan["num_gpus"] == 2
    assert plan["command_line"].startswith("--num-gpus 2 ")
    notes = " ".join(plan["notes"])
    assert "num_gpus=2: the GPU memory is that of each GPU, the time that of 2 videos" in notes
    assert "For one video sooner: context_parallel=2." in notes
    streamed = plan_of(capsys, "--model", folder, *SIZE, *arguments, "--dit-layerwise-offload")
    assert "The 2 GPUs hold the streamed blocks once" in streamed
    for context, notes_it in ((2, True), (1, False)):
        text = plan_of(
            capsys, "--model", folder, *SIZE, *arguments, f"--context-parallel={context}"
        )
        assert ("planned as if each GPU made the whole" in text) is notes_it


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--context-parallel", "2"], "--context-parallel 2 does not divide --num-gpus 3."),
        (["--guidance-parallel", "2"], "--guidance-parallel 2 does not divide --num-gpus 3."),
        (
            ["--context-parallel", "2", "--guidance-parallel", "2"],
            "--context-parallel 2 and --guidance-parallel 2 do not divide --num-gpus 3.",
        ),
    ],
)
def test_what_does_not_divide_the_gpus_is_refused(folder, capsys, flags, said):
    assert run(["plan", "--model", folder, "--num-gpus", "3", *flags]) == 2
    assert said in read_errors(capsys)[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "RTX 4900"], "RTX 4090"),
        (["--gpu", ""], "There is no card ''"),
        (["--gpu-memory-budget", "0.01", "--gpu", "T4"], "smallest possible"),
        (["--gpu-memory-budget", "much"], "neither a number of GiB nor auto"),
        (["--gpu-memory-budget", "auto"], "has no GPU"),
        (["--height", "33"], "--height 32"),
        (["--gpu-memory-budge", "3"], "--gpu-memory-budget"),
    ],
)
def test_a_wrong_choice_is_said_in_two_lines(arguments, words, folder, capsys):
    size = SIZE[2:] if "--height" in arguments else SIZE
    assert run(["plan", "--model", folder, *size, *arguments]) == 2
    lines = read_errors(capsys)
    assert len(lines) == 2
    assert words in " ".join(lines)


def test_probe_on_a_cpu_says_what_it_cannot_measure(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTVIDEO_LIGHTNING_CACHE", str(tmp_path))
    assert run(["probe"]) == 0
    captured = capsys.readouterr()
    assert "TFLOP/s" in captured.out
    assert "no GPU here" in captured.err
    assert not list(tmp_path.iterdir())


def test_a_model_that_this_machine_cannot_compute_ends_before_a_weight_is_read(
    folder, capsys, monkeypatch
):
    import psutil

    from fastvideo_lightning.checkpoint.weights import READ
    from fastvideo_lightning.plan import host_tiers
    from fastvideo_lightning.plan.host_memory import FreeMemory

    monkeypatch.setattr(psutil, "swap_memory", type("Swap", (), {"free": 0}))
    monkeypatch.setattr(host_tiers, "find_free_memory", lambda: FreeMemory(1024, "the machine"))
    before = READ.size()
    assert run(["generate", "--model", folder, *SIZE, "--accelerator", "cpu", "--prompt", "a"]) == 2
    said = " ".join(read_errors(capsys))
    assert "to compute on the CPU, and the machine leaves 0.0 GiB" in said
    assert "--dtype fp8" in said
    assert READ.size() == before
