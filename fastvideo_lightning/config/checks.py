"""Names that a user typed, held against those that are known."""

import re
from collections.abc import Callable, Collection, Iterable
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


_STEP_END = (
    "A callback hears the end of each step: give from_pretrained(callbacks=[...]) an object with a "
    "method on_denoise_step_end(step, timestep, latents), as in docs/writing_callbacks.md."
)
OF_DIFFUSERS = {
    "callback": _STEP_END,
    "callback_on_step_end": _STEP_END,
    "callback_on_step_end_tensor_inputs": _STEP_END,
    "callback_steps": _STEP_END,
    "generator": "Pass the seed of its noise, such as seed=7.",
    "output_type": f"A video is made of frames. For its latents: {_STEP_END}",
    "return_dict": "A GeneratedVideo is returned. Leave it out.",
}
"""Of a diffusers pipeline's call, what is asked for in another way, and in which."""


def check_keywords(
    given: Iterable[str], *, known: Collection[str], others: Collection[str], where: str
) -> None:
    """Raise TypeError for a keyword that nothing takes, with the nearest that something does.

    Args:
        given: The keywords.
        known: What may be among them.
        others: What the same call takes besides.
        where: The call, as in `generate_video()`.
    """
    for name in given:
        if name not in known:
            near = nearest_name(name, (*known, *others))
            hint = f"Did you mean {near}?" if near else f"Known are: {', '.join(known)}."
            hint = OF_DIFFUSERS.get(name, hint)
            raise TypeError(f"{where} does not know {name!r}. {hint}")


MAX_CHARACTERS = 100_000
"""Of a prompt. Text encoders cut after some hundred words, but take memory and time for all."""


def check_text(text: str, where: str) -> None:
    r"""Raise ValueError for a text that is far longer than a model reads, or is no valid one.

    That has halves of characters, which no file and no terminal takes. They come from bytes on the
    command line that are no UTF-8, and from JSON's `\ud800`.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{where} must be {MAX_CHARACTERS} characters or fewer, got {len(text)}. Shorten it: "
            "models read some hundred words."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} is no valid text: character {error.start + 1} is half a character, "
            f"{text[error.start]!r}. Write it in UTF-8."
        ) from error


def spell_lists(message: str, names: Iterable[str], spell: Callable[[str], str]) -> str:
    """Spell all names of a list alike, such as those of `height, width or num_frames`.

    A short name is a plain word too, so a list counts only where a name in it has an underscore.
    What follows a quote is spelled as in the file that it is from, and an option is one already.
    """
    name = "|".join(sorted(names, key=len, reverse=True))

    def spell_each(match: re.Match[str]) -> str:
        if "_" not in match[0]:
            return match[0]
        return re.sub(rf"\b(?:{name})\b", lambda each: spell(each[0]), match[0])

    return re.sub(rf"(?<!['-])\b(?:{name})(?:(?:, | or )(?:{name}))+\b(?!=)", spell_each, message)


def check_switch(name: str, value: object) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}. Pass {name}=True.")


def check_count(name: str, value: object, *, low: int) -> None:
    """Raise unless a value is a whole number, `low` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise (ValueError if isinstance(value, int) else TypeError)(
            f"{name} must be a whole number, {low} or more, got {value!r}. "
            f"Pass one such as {name}={low + 1}."
        )
