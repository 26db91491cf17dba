import pytest
import torch

from fastvideo_lightning.strategies.failures import Failure, read_failures

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


def test_a_failure_is_one_line_and_outlives_its_process(tmp_path):
    failure = Failure.of(5, ValueError("one\ntwo"))
    failure.write(tmp_path)
    assert read_failures(tmp_path) == {5: failure}
    assert failure.line == "Error: rank 5 failed: ValueError: one"
    assert Failure.of(0, KeyError()).line == "Error: rank 0 failed: KeyError"


def test_nothing_is_written_where_nobody_looks_any_more(tmp_path):
    Failure.of(0, ValueError("a")).write(tmp_path / "gone")
    assert read_failures(tmp_path / "gone") == {}
