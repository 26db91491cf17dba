import os
import subprocess
import sys
import tempfile

import pytest
import torch

from fastvideo_lightning.strategies.failures import Failure, Ledger

GONE = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:214")


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (GONE, True),
        (torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"), True),
        (RuntimeError("Rank 1 failed: ValueError: broken"), True),
        (RuntimeError("Out of GPU memory in the decode stage."), False),
        (ValueError("the connection closed"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_what_only_follows_from_another_failure_is_told_by_its_words(error, follows):
    assert Failure.of(0, error).follows is follows


def test_the_cause_is_the_earliest_that_does_not_follow_and_a_killed_one_before_it():
    follows = Failure.of(0, GONE)
    first, second = Failure.of(3, ValueError("a")), Failure.of(1, ValueError("b"))
    assert min(follows, second, first) == first
    killed = Failure.of_exit(2, -9)
    assert min(follows, first, killed) == killed


def test_a_failure_is_one_line_and_outlives_its_process():
    ledger, failure = Ledger.create(), Failure.of(5, ValueError("one\ntwo"))
    ledger.note(failure)
    assert Ledger.inherit(os.dup(ledger.file_number)).failures == {5: failure}
    assert failure.line == "Error: rank 5 failed: ValueError: one"
    assert Failure.of(0, KeyError()).line == "Error: rank 0 failed: KeyError"


def test_a_ledger_has_no_name_and_is_written_by_many_processes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ledger = Ledger.create()
    assert not list(tmp_path.iterdir())
    write = "import sys; from fastvideo_lightning.strategies.failures import Ledger\n"
    write += "ledger = Ledger.inherit(int(sys.argv[1]))\n"
    write += "for rank in range(200): ledger.say_ended(int(sys.argv[2]) + rank)"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", write, str(ledger.file_number), str(first)],
            pass_fds=(ledger.file_number,),
        )
        for first in (0, 200)
    ]
    assert [writer.wait(100) for writer in writers] == [0, 0]
    assert ledger.ended == set(range(400))


def test_one_process_speaks_for_all():
    ledger = Ledger.create()
    assert [ledger.speak(rank) for rank in (2, 1, 2, 0)] == [True, False, True, False]


def test_where_nothing_can_be_written_the_exit_code_has_to_do():
    with open(os.devnull) as file:
        Ledger(file.fileno()).note(Failure.of(0, ValueError("a")))
