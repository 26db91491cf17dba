"""The prompts of a run as a map-style dataset, and what is wrong with those of a file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastvideo_lightning.config import ResolvedSampling, SamplingParams, check_known, check_text

MOST_SHOWN = 20


class PromptFileError(ValueError):
    """Lines of a prompt file are wrong: a line of the message for each, the first ones of many.

    Args:
        wrong: What is wrong with each.
        right: Lines that show how it is written.
    """

    is_of_file = True
    """Names are spelled as in the file, and every line of the message counts."""

    def __init__(self, wrong: Sequence[str], right: Sequence[str] = ()) -> None:
        super().__init__("\n".join([*first_of_many(wrong, "line"), *right]))


def first_of_many(wrong: Sequence[str], noun: str) -> list[str]:
    """Return the first of what is wrong with each, and a line that counts the rest of many.

    Args:
        wrong: A line for each.
        noun: What each of them is, such as `line`.
    """
    more = len(wrong) - MOST_SHOWN
    counted = [f"... and {more} more {noun}{'s' if more > 1 else ''}."] if more > 0 else []
    return [*wrong[:MOST_SHOWN], *counted]


class LocatedPrompts(list[dict[str, Any]]):
    """Prompts that know where they are from.

    Attributes:
        places: Of each, such as `p.csv, line 3`; none where only texts and seeds stand in the file,
            for then what a model refuses is not from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._locations: list[str] = []

    def add(self, prompt: dict[str, Any], place: str) -> None:
        """Append a prompt that stands at that place."""
        self.append(prompt)
        self._locations.append(place)

    @property
    def locations(self) -> Sequence[str]:  # noqa: D102  # among the attributes
        return self._locations if any(p.keys() - {"prompt", "seed"} for p in self) else ()


class PromptDataset:
    """Prompts with a seed each, checked when the dataset is made.

    An item is a dictionary: `index`, `prompt`, `seed` (= `seed` + `index`) and every sampling field
    that was given. It is a map-style dataset: `DataLoader(..., batch_size=None)` takes it.

    Args:
        prompts: Each a text, or a mapping with `prompt` and `SamplingParams` fields that override.
        seed: Seed of the first prompt; the n-th gets `seed + n`.
        **sampling: `SamplingParams` fields for all prompts; None means the family's default.

    Raises:
        TypeError: If a prompt is neither text nor a mapping, or `prompts` is no list of them.
        ValueError: If a prompt is empty, a field is unknown or a value is impossible.

    Attributes:
        locations: Of each prompt of a file, where it stands; else none.
    """

    def __init__(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        seed: int = 1024,
        **sampling: Any,
    ) -> None:
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise TypeError(
                f"prompts must be a list of prompts, got one {type(prompts).__name__}. "
                "Pass it in a list: [prompt]."
            )
        self.locations = prompts.locations if isinstance(prompts, LocatedPrompts) else ()
        base = SamplingParams.from_mapping({**sampling, "seed": seed})
        self._items = [_item(index, prompt, base) for index, prompt in enumerate(prompts)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._items[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(item) for item in self._items)


class ResolvedPrompt(dict[str, Any]):
    """An item as of a `PromptDataset`, of a prompt that was resolved against its model.

    Args:
        prompt: What the video shows.
        params: What `VideoModule.resolve_sampling` returned.
        index: Of the prompt among several.
    """

    def __init__(self, prompt: str, params: ResolvedSampling, index: int = 0) -> None:
        super().__init__(index=index, prompt=prompt, **params.given())
        self.params = params


def params_of(item: Mapping[str, Any]) -> SamplingParams:
    """Return the sampling parameters among an item, those of a resolved one as resolved."""
    if isinstance(item, ResolvedPrompt):
        return item.params
    sampling = {name: value for name, value in item.items() if name not in ("index", "prompt")}
    return SamplingParams.from_mapping(sampling)


def read_shard(shard: str) -> tuple[int, int]:
    """Return which part of a list is meant, and of how many: `3/8` is (3, 8).

    Raises:
        TypeError: If it is not text.
        ValueError: If it is no part of anything.
    """
    wanted = "shard must be a part and the number of parts, such as '3/8'"
    if not isinstance(shard, str):
        raise TypeError(f"{wanted}, got {shard!r}.")
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ValueError(f"{wanted}, got {shard!r}.")
    if not 1 <= int(number) <= int(count):
        raise ValueError(f"{wanted}, got {shard!r}. Parts are counted from 1.")
    return int(number), int(count)


def check_prompt(prompt: object, *, where: str = "prompt") -> str:
    """Return the prompt if it is text with something in it.

    Raises:
        TypeError: If it is not text.
        ValueError: If it is empty, only white space, far too long or no valid text.
    """
    if not isinstance(prompt, str):
        raise TypeError(
            f"{where} must be text, got {type(prompt).__name__}. "
            'Pass a description of the video, such as "a red circle moves right".'
        )
    check_text(prompt, where)
    if not prompt.strip():
        raise ValueError(
            f"{where} is empty: got {prompt!r}. "
            'Describe the video, for example "a red circle moves right".'
        )
    return prompt


def _item(index: int, prompt: str | Mapping[str, Any], base: SamplingParams) -> dict[str, Any]:
    where = f"prompts[{index}]"
    overrides = dict(prompt) if isinstance(prompt, Mapping) else {"prompt": prompt}
    check_known(overrides, ("prompt", *SamplingParams.__dataclass_fields__), where)
    text = check_prompt(overrides.pop("prompt", ""), where=where)
    params = base.merge(**{"seed": base.seed + index, **overrides})
    return {"index": index, "prompt": text, **params.given()}
