"""Names that a user typed, held against those that are known."""

from collections.abc import Collection
from difflib import get_close_matches


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """Return the known name that looks most like `name`, or None when none is close."""
    words = {word.replace("-", "_"): word for word in known}
    close = get_close_matches(name.replace("-", "_").lower(), words, n=1, cutoff=0.6)
    return words[close[0]] if close else None


def check_known(given: Collection[str], known: Collection[str], where: str) -> None:
    """Raise ValueError for the first name in `given` that is not `known`, naming the nearest."""
    for name in given:
        if name not in known:
            near = nearest_name(str(name), known)
            hint = f"Did you mean {near}?" if near else f"Known are: {', '.join(known)}."
            raise ValueError(f"{where} does not know {name!r}. {hint}")
