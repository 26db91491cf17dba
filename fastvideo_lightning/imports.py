"""Imports of other libraries, without what they say while they look for yet others."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Have nothing below an error logged while libraries are imported, by whichever library.

    On import transformers, torchao and their like tell of every optional package that they miss or
    cannot use; whoever asked for a video did not ask for those.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
