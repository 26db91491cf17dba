"""Says at DEBUG how long each part of a set-up takes."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Time what happens within; one line in the log, also after an exception."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        _log.debug("%s: %.3f s", name, time.perf_counter() - begin)
