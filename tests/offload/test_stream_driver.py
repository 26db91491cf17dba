"""What is asked of the CUDA driver, which is played."""

import sys
from types import ModuleType

import pytest

from fastvideo_lightning.offload.stream_driver import StreamDriver


class Bindings:
    """Notes what it is asked for, and answers with a code."""

    def __init__(self):
        self.asked = []
        self.code = 0

    def __getattr__(self, name):
        def answer(*arguments):
            self.asked.append((name, *arguments))
            return (self.code,)

        return answer


@pytest.fixture
def bindings(monkeypatch):
    played = Bindings()
    module = ModuleType("cuda.bindings")
    module.driver = played
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", module)
    return played


def test_each_is_one_call(bindings):
    driver = StreamDriver()
    driver.copy(1000, 2000, 64, 7)
    driver.write(3000, 5, 7)
    driver.wait(4000, 6, 7)
    assert bindings.asked == [
        ("cuMemcpyAsync", 1000, 2000, 64, 7),
        ("cuStreamWriteValue32", 7, 3000, 5, 0),
        ("cuStreamWaitValue32", 7, 4000, 6, 0),
    ]


@pytest.mark.parametrize("what", ["copy", "write", "wait"])
def test_a_refusal_is_not_passed_over(bindings, what):
    bindings.code = 801
    arguments = (0,) * (4 if what == "copy" else 3)
    with pytest.raises(RuntimeError, match=f"refused to {what}: 801"):
        getattr(StreamDriver(), what)(*arguments)


def test_without_bindings_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ImportError):
        StreamDriver()
