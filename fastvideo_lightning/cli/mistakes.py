"""Which errors are the user's to mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from fastvideo_lightning.cli.options import WrongChoiceError, in_command_words


@contextmanager
def users_mistakes(*also: type[Exception]) -> Iterator[None]:
    """Mark errors before the work as the user's to mend: they end with exit code 2.

    What they say of Python names is put into the words that one types here.
    """
    kinds: list[type[Exception]] = [ValueError, TypeError, OSError, *also]
    try:
        yield
    except click.UsageError:
        raise
    except tuple(kinds) as error:
        first, *more = str(error).strip().splitlines() or [type(error).__name__]
        context = click.get_current_context(silent=True)
        if getattr(error, "is_of_file", False):
            raise WrongChoiceError(first, context, further=more) from error
        notes = [*map(in_command_words, getattr(error, "__notes__", ()))]
        raise WrongChoiceError(in_command_words(first), context, further=notes) from error
