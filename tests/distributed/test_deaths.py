"""Whichever process dies at whatever moment: soon nothing is left, and the exit code is right."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from distributed.scripts import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and Linux ends orphans"),
]

MOST_S = 20
NUM_VIDEOS = 4
GENERATE = ("generate", "--prompts", "prompts.txt", "--num-inference-steps", "1", "--num-gpus", "2")
COMMAND = ("-m", "fastvideo_lightning", *GENERATE, "--accelerator", "cpu")
SCRIPT = """
import sys
import lightning
from fastvideo_lightning import VideoGenerator


def main():
    generator = VideoGenerator.from_pretrained("tiny-shapes", accelerator="cpu", num_gpus=2)
    prompts = ["a red circle moves left"] * 4
    for video in generator.generate_videos(prompts, output_path="output", num_inference_steps=1):
        pass
    print("4 of 4 videos are in", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
"""


started = pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(COMMAND, id="command"),
        pytest.param(("script.py",), id="script", marks=pytest.mark.exhaustive),
    ],
)


class Run:
    """A command of two processes in a folder of its own."""

    def __init__(self, folder, arguments):
        (folder / "prompts.txt").write_text("a red circle moves left\n" * NUM_VIDEOS)
        (folder / "script.py").write_text(SCRIPT)
        (folder / "temporary").mkdir()
        self.folder = folder
        self.mark = str(folder)
        self.first = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(TMPDIR=str(folder / "temporary"), OF_THIS_RUN=self.mark),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def find(self):
        """The processes that there are of it, whoever their parent is."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    content = file.read()
                with open(f"/proc/{name}/stat") as file:
                    is_zombie = file.read().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if f"OF_THIS_RUN={self.mark}\0".encode() in content and not is_zombie:
                found.append(int(name))
        return found

    def find_second(self, timeout_s=150):
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            assert self.first.poll() is None, self.first.stderr.read()
            others = [pid for pid in self.find() if pid != self.first.pid]
            if others:
                return others[0]
            time.sleep(0.02)
        raise AssertionError("there is no second process")

    def wait_gone(self):
        until = time.monotonic() + MOST_S
        while left := self.find():
            assert time.monotonic() < until, f"{left} are still there"
            self.first.poll()
            time.sleep(0.1)

    @property
    def num_videos(self):
        return len(list((self.folder / "output").glob("*.mp4")))

    def end(self):
        for pid in self.find():
            os.kill(pid, signal.SIGKILL)
        self.first.wait()
        self.first.stderr.close()


@pytest.fixture
def start(tmp_path):
    runs = []

    def start(arguments):
        runs.append(Run(tmp_path, arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


@started
@pytest.mark.parametrize("after_s", [0, pytest.param(0.3, marks=pytest.mark.exhaustive)])
def test_a_process_whose_parent_dies_while_it_imports_is_gone_at_once(start, arguments, after_s):
    run = start(arguments)
    run.find_second()
    time.sleep(after_s)
    run.first.kill()
    run.wait_gone()
    assert not list((run.folder / "temporary").iterdir())


@pytest.mark.exhaustive
@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left_whichever_process_dies_at_any_moment(start, seed, which):
    run = start(COMMAND)
    second = run.find_second()
    time.sleep(random.Random(f"{seed} {which}").uniform(0, 25))
    if run.first.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it has come to its end just now
            os.kill(run.first.pid if which == "first" else second, signal.SIGKILL)
    run.wait_gone()
    assert not list((run.folder / "temporary").iterdir())
    assert (run.first.wait() == 0) <= (run.num_videos == NUM_VIDEOS)


@started
@pytest.mark.parametrize(
    "how", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive)]
)
def test_where_all_is_made_the_code_is_0_however_long_a_process_needs_to_end(start, arguments, how):
    if how == signal.SIGKILL and arguments != COMMAND:
        pytest.skip("what a script has still to do nobody knows")
    run = start(arguments)
    for line in run.first.stderr:
        if "4 of 4 videos are in" in line:
            break
    for pid in run.find():
        if pid != run.first.pid:
            os.kill(pid, how)
            if arguments != COMMAND:  # by then the first has come to its end long ago
                threading.Timer(9, os.kill, (pid, signal.SIGCONT)).start()
    assert run.first.wait(MOST_S + 30) == 0, run.first.stderr.read()
    assert run.num_videos == NUM_VIDEOS
    assert not run.find()


@pytest.mark.exhaustive
def test_the_ranks_of_torchrun_end_with_it(start):
    run = start(("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"))
    until = time.monotonic() + 150
    while len(run.find()) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    while not (run.folder / "output").exists() and time.monotonic() < until:
        time.sleep(0.05)
    run.first.kill()
    run.wait_gone()
