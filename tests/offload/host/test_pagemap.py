"""Where the system does not say which pages were written, no file is mapped."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from fastvideo_lightning.offload.host import mapped

linux = pytest.mark.skipif(sys.platform != "linux", reason="the page table needs Linux")


@linux
def test_a_table_that_is_missing_empty_or_blank_is_not_readable(tmp_path):
    assert not mapped.is_readable(tmp_path / "pagemap")
    assert not mapped.is_readable(Path("/dev/null"))
    assert not mapped.is_readable(Path("/dev/zero")), "it says that a page in memory is not there"


@pytest.mark.parametrize("kind", [LayerwiseOffload, ModelOffload])
def test_mapped_memory_is_refused_with_its_reason(kind, monkeypatch):
    monkeypatch.setattr(mapped, "IS_SUPPORTED", False)
    with pytest.raises(ValueError, match="mapped' needs Linux and /proc/self/pagemap.*'auto'"):
        kind("blocks", host_memory="mapped")
    kind("blocks", host_memory="auto")


RUN = """
import sys
from pathlib import Path

import torch

opened = Path.open


def without_pagemap(self, *args, **kwargs):
    if str(self) == "/proc/self/pagemap":
        raise {error}(str(self))
    return opened(self, *args, **kwargs)


Path.open = without_pagemap
from fastvideo_lightning.callbacks import LayerwiseOffload
from fastvideo_lightning.offload.host.store import HostStore
from tests.support.toys import OnFile, make_toy, sample

plain = make_toy(4)
model = OnFile(plain, Path(sys.argv[1]))
callback = LayerwiseOffload("blocks")
maps = HostStore.maps


def as_for_a_gpu(self, *args):
    self._has_driver = True
    try:
        return maps(self, *args)
    finally:
        self._has_driver = False


HostStore.maps = as_for_a_gpu
callback.attach(model, "cpu")
engine = callback.attachments[0].engine
assert engine.store.mapped_bytes == 0
for _ in range(2):
    callback.on_predict_batch_start()
    assert torch.equal(model(sample()), plain(sample()))
    callback.on_predict_batch_end()
"""


@linux
@pytest.mark.parametrize("error", ["FileNotFoundError", "PermissionError"])
def test_auto_takes_memory_of_its_own_and_runs_where_the_table_cannot_be_read(error, tmp_path):
    run = RUN.replace("{error}", error)
    command = [sys.executable, "-c", run, str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
