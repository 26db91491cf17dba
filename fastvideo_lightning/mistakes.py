"""Which errors are the user's to mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from fastvideo_lightning.options import WrongChoiceError


@contextmanager
def users_mistakes(*also: type[Exception]) -> Iterator[None]:
    """Mark errors before the work as the user's to mend: they end with exit code 2."""
    kinds: list[type[Exception]] = [ValueError, TypeError, OSError, *also]
    try:
        yield
    except click.UsageError:
        raise
    except tuple(kinds) as error:
        raise WrongChoiceError(str(error), click.get_current_context(silent=True)) from error
