"""One process fails: all end soon, nothing is left, and the last line says which and why."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from distributed.conftest import needs_two_gpus
from distributed.scripts import HERE, environment

pytestmark = pytest.mark.slow

BROKEN = "ValueError: the third block is broken"
KILLED = "it was killed by SIGKILL, as the system does when memory runs out"
GONE = "it is gone without a word, as if killed"
EXITED = "it ended with exit code 3"
GIVEN_UP = "it ended by sys.exit while others were at work"
LEFT = "it ended while rank 1 was at work, and 2 s later still was"
UNFINISHED = "it ended with exit code 0 before its work was done"
NO_MEMORY = "Tried to allocate 2.00 GiB."
MEMORY = f"OutOfMemoryError: CUDA out of memory. {NO_MEMORY}"


gpu = pytest.param("gpu", marks=[pytest.mark.multi_gpu, needs_two_gpus])
on_cpu_and_gpu = pytest.mark.parametrize("accelerator", ["cpu", gpu])


def more(*values, id):
    """A case that repeats the promise of the first."""
    return pytest.param(*values, id=id, marks=pytest.mark.exhaustive)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def left_in(folder):
    """What is left in a temporary folder, but for the logs that torchrun leaves there itself."""
    return [path for path in folder.iterdir() if not path.name.startswith("torchelastic_")]


def temporary(folder):
    """The temporary folder of a run: nothing is to be left in it."""
    (folder / "temporary").mkdir()
    return str(folder / "temporary")


@pytest.mark.parametrize(
    ("size", "rank", "how", "others", "reason"),
    [
        pytest.param(2, 1, "raise", "wait", BROKEN, id="an-exception-while-others-wait"),
        more(2, 0, "memory", "work", MEMORY, id="memory-of-the-first-while-others-work"),
        more(3, 2, "kill", "wait", KILLED, id="a-killed-one-while-others-wait"),
        more(3, 0, "kill", "work", GONE, id="the-first-killed-while-others-work"),
        more(2, 1, "exit", "wait", GIVEN_UP, id="an-exit"),
        more(2, 1, "os-exit", "wait", EXITED, id="an-exit-at-once"),
        more(2, 1, "os-exit-0", "wait", UNFINISHED, id="an-exit-at-once-as-if-all-is-well"),
        more(2, 1, "early-exit-0", "wait", UNFINISHED, id="an-exit-before-the-group"),
        more(2, 0, "exit", "work", LEFT, id="an-exit-of-the-first"),
        more(2, 0, "system-exit", "wait", LEFT, id="a-bare-exit-of-the-first"),
        more(2, 0, "system-exit-3", "work", LEFT, id="a-raised-exit-of-the-first"),
        more(2, 0, "return", "work", LEFT, id="an-end-of-the-first"),
    ],
)
@on_cpu_and_gpu
def test_all_end_within_20_s_and_the_last_line_says_which_and_why(
    tmp_path, size, rank, how, others, reason, accelerator
):
    if accelerator == "gpu":
        size, rank = 2, min(rank, 1)
    settings = {"rank": rank, "how": how, "others": others, "accelerator": accelerator}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, str(HERE / "failing.py"), str(size), str(tmp_path)]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command, env=environment(TMPDIR=temporary(tmp_path)), stderr=stderr, cwd=tmp_path
        )
        assert process.wait(200) != 0
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("[0-9].json")]
    assert len(notes) == (0 if how == "early-exit-0" else size)
    deadline = float((tmp_path / "failed_at").read_text()) + 20
    while any(is_alive(note["pid"]) for note in notes):
        assert time.time() < deadline
        time.sleep(0.1)
    assert time.time() < deadline
    last_line = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last_line == f"Error: rank {rank} failed: {reason}"
    if others == "work":
        assert len(list(tmp_path.glob("tidy-*"))) == size - 1
    for note in notes:
        with socket.socket() as connection:
            assert connection.connect_ex(("127.0.0.1", note["port"])) != 0
    assert not left_in(tmp_path / "temporary")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
FABRIC_RUN = ("-m", "lightning.fabric.cli", "--accelerator=cpu", "--devices=2", "--main-port=29431")
GENERATE = ("generate", "--prompts", "prompts.txt", "--num-inference-steps=1", "--num-gpus=2")
GENERATE += ("--accelerator=cpu", "--shard-transport=gather", "--debug")


@pytest.mark.parametrize(
    ("launcher", "script", "rank", "how", "reason"),
    [
        more(TORCHRUN, "failing.py", 1, "raise", BROKEN, id="torchrun"),
        more(TORCHRUN, "failing.py", 0, "kill", None, id="torchrun-killed"),
        more(TORCHRUN, "failing_command.py", 1, "memory", NO_MEMORY, id="torchrun-command"),
        more(FABRIC_RUN, "failing.py", 0, "memory", MEMORY, id="fabric-run"),
        more((), "failing_command.py", 1, "raise", BROKEN, id="command"),
        pytest.param((), "failing_command.py", 0, "kill", GONE, id="command-killed"),
    ],
)
def test_all_end_within_30_s_and_the_rank_is_named_however_they_were_started(
    tmp_path, launcher, script, rank, how, reason
):
    (tmp_path / "settings.json").write_text(
        json.dumps({"rank": rank, "how": how, "others": "wait", "accelerator": "cpu"})
    )
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    arguments = GENERATE if "command" in script else ("2", str(tmp_path))
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *launcher, str(HERE / script), *arguments],
            env=environment(TMPDIR=temporary(tmp_path)),
            stderr=stderr,
            cwd=tmp_path,
        )
        assert process.wait(200) != 0
    notes = [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2)]
    deadline = float((tmp_path / "failed_at").read_text()) + 30
    while any(is_alive(note["pid"]) for note in notes):
        assert time.time() < deadline
        time.sleep(0.1)
    with socket.socket() as connection:
        assert connection.connect_ex(("127.0.0.1", notes[0]["port"])) != 0
    said = (tmp_path / "stderr").read_text()
    if reason is not None:
        assert re.search(f"^Error: rank {rank} failed: .*{re.escape(reason)}", said, re.MULTILINE)
    if launcher:
        cause = said.partition("Root Cause")[2]
        assert f"rank      : {rank} " in cause
        assert (reason or "Signal 9 (SIGKILL)") in cause
    else:
        assert said.splitlines()[-1].startswith(f"Error: rank {rank} failed: ")
        assert ("in predict_step" in said) is (how == "raise")  # the traceback, whichever rank's


@pytest.mark.exhaustive
@pytest.mark.parametrize("transport", ["gather", "local"])
@pytest.mark.parametrize(
    ("rank", "how", "reason"), [(0, "kill", GONE), (1, "kill", KILLED), (1, "raise", BROKEN)]
)
def test_of_two_that_share_the_calls_of_a_step_none_is_left_where_one_fails_in_it(
    tmp_path, rank, how, reason, transport
):
    settings = {"rank": rank, "how": how, "step": 2, "others": "wait"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    others = {"--num-inference-steps=1": "4", "--shard-transport=gather": transport}
    arguments = [f"{a.partition('=')[0]}={others[a]}" if a in others else a for a in GENERATE]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "failing_command.py"), *arguments, "--guidance-parallel=2"],
            env=environment(TMPDIR=temporary(tmp_path)),
            stderr=stderr,
            cwd=tmp_path,
        )
        assert process.wait(200) != 0
    notes = [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2)]
    deadline = float((tmp_path / "failed_at").read_text()) + 20
    while any(is_alive(note["pid"]) for note in notes):
        assert time.time() < deadline
        time.sleep(0.1)
    if rank:  # where the first is killed, the other may be ended before it has said so
        last_line = (tmp_path / "stderr").read_text().splitlines()[-1]
        assert last_line == f"Error: rank {rank} failed: {reason}"
    assert not left_in(tmp_path / "temporary")


def run_two(folder, launcher, settings):
    """Two processes, from their start to their end, and what they said."""
    (folder / "settings.json").write_text(json.dumps(settings))
    return subprocess.run(
        [sys.executable, *launcher, str(HERE / "failing.py"), "2", str(folder)],
        env=environment(TMPDIR=temporary(folder)),
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
    )


@pytest.mark.parametrize("launcher", [pytest.param((), id="script"), more(TORCHRUN, id="torchrun")])
@pytest.mark.parametrize("rank", [0, more(1, id="1")])
@on_cpu_and_gpu
def test_whoever_ends_first_the_group_is_closed_by_all_without_a_word(
    tmp_path, launcher, rank, accelerator
):
    settings = {"rank": rank, "how": "return", "others": "end", "accelerator": accelerator}
    world = run_two(tmp_path, launcher, settings)
    assert world.returncode == 0
    assert "Error" not in world.stderr
    assert len(list(tmp_path.glob("closes-*"))) == (2 if accelerator == "cpu" else 0)
    assert not left_in(tmp_path / "temporary")


@pytest.mark.multi_gpu
@needs_two_gpus
@pytest.mark.parametrize(("how", "code"), [("raise", 1), ("exit", 3)])
def test_torchrun_hears_of_a_rank_that_gives_up_while_another_waits_in_nccl(tmp_path, how, code):
    settings = {"rank": 1, "how": how, "others": "wait", "accelerator": "gpu"}
    world = run_two(tmp_path, TORCHRUN, settings)
    assert world.returncode != 0
    assert time.time() < float((tmp_path / "failed_at").read_text()) + 30
    cause = world.stderr.partition("Root Cause")[2]
    assert "rank      : 1 " in cause
    assert f"exitcode  : {code} " in cause


@pytest.mark.parametrize("others", ["wait", more("work", id="work"), more("start", id="start")])
def test_ctrl_c_ends_all_at_once_wherever_they_are_and_leaves_nothing(
    tmp_path, hears_ctrl_c, others
):
    settings = {"rank": 1, "how": "interrupt", "others": others}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, str(HERE / "failing.py"), "2", str(tmp_path)]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command,
            env=environment(TMPDIR=temporary(tmp_path)),
            stderr=stderr,
            cwd=tmp_path,
            start_new_session=True,
        )
        if others == "start":
            while not (tmp_path / "starting").exists():
                assert process.poll() is None
                time.sleep(0.1)
            time.sleep(3)  # by then the first process waits
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(100)
    assert code in (130, -signal.SIGINT)  # the shell shows 130 for both
    ended = time.time()
    pids = [int((tmp_path / "starting").read_text())] if others == "start" else []
    pids += [json.loads(path.read_text())["pid"] for path in tmp_path.glob("[01].json")]
    assert len(pids) == 1 + (others != "start")
    while any(is_alive(pid) for pid in pids):
        assert time.time() < ended + 5
        time.sleep(0.1)
    assert not left_in(tmp_path / "temporary")
    assert "failed" not in (tmp_path / "stderr").read_text()
    if others != "start":
        assert ended - float((tmp_path / "failed_at").read_text()) < 15
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert sum(line.endswith("KeyboardInterrupt") for line in lines) == 1
