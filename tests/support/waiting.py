"""Waiting for what happens on another thread."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(look: Callable[[], T | None], *, timeout_s: float = 60) -> T:
    """Return the first thing that `look` finds; fail when it finds nothing in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing in {timeout_s} s"
        time.sleep(0.01)
    return found
