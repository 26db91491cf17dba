"""Names for a profiler, and times of the parts of a set-up."""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.profiler import record_function

_NOTHING: AbstractContextManager[object] = nullcontext()


def span(name: str) -> AbstractContextManager[object]:
    """Name what happens within for a profiler that is running.

    Where none is, nothing is recorded: a record takes microseconds, and there are three a block.
    """
    return record_function(name) if torch._C._autograd._profiler_enabled() else _NOTHING


_log = logging.getLogger(__name__)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Time what happens within; one line in the log, also after an exception."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        _log.debug("%s: %.3f s", name, time.perf_counter() - begin)
