"""What other libraries log while they are at work for us, and whoever asked for a video did not.

Loggers, their levels and their filters belong to the whole process. They are left as they are: the
one record factory that logging has asks, for each record, what its thread does not want to hear.

Packages that only some choices need: whether they are there is known before anything slow.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_NEVER_HANDLED = -1  # below the level of every handler


class _Thread(threading.local):
    """What the running thread does not want to hear."""

    def __init__(self) -> None:
        self.unwanted: list[Callable[[logging.LogRecord], bool]] = []


_HERE = _Thread()
_make = logging.getLogRecordFactory()


def _make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _make(*args, **kwargs)
    if any(is_unwanted(record) for is_unwanted in _HERE.unwanted):
        record.levelno = _NEVER_HANDLED
    return record


logging.setLogRecordFactory(_make_record)


@contextmanager
def unheard(is_unwanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Have some of what this thread logs handled by nobody."""
    _HERE.unwanted.append(is_unwanted)
    try:
        yield
    finally:
        _HERE.unwanted.remove(is_unwanted)


def quiet_imports() -> AbstractContextManager[None]:
    """Have nothing below an error logged while libraries are imported, by whichever library.

    On import transformers, torchao and their like tell of every optional package that they miss or
    cannot use.
    """
    return unheard(_is_no_error)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def check_installed(package: str, *, extra: str, needed_by: str) -> None:
    """Look for a package without importing it.

    Args:
        package: Its name, as in `import`.
        extra: Of this package's extras the one that brings it.
        needed_by: What the user chose, as in `dtype='fp8'`.

    Raises:
        ImportError: If it is not installed; names what to type.
    """
    if find_spec(package) is None:
        raise ImportError(
            f"{needed_by} needs {package}, which is not installed. "
            f'Install it: pip install "fastvideo-lightning[{extra}]"'
        )


def hand_on(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package, which imports a name when it is asked for (PEP 562).

    Args:
        package: What the package is called.
        homes: In which of its files each name is.
    """

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
