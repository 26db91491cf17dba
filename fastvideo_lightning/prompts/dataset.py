"""The prompts of a run as a map-style dataset, and what is wrong with those of a file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastvideo_lightning.config import ResolvedSampling, SamplingParams, check_known, check_text
from fastvideo_lightning.config.checks import check_count
from fastvideo_lightning.output.files import MAX_STEM_BYTES, safe_stem

MOST_SHOWN = 20
MOST_SEEDS = 10_000
_MAX_NAME_BYTES = MAX_STEM_BYTES - 20  # a seed of any length fits behind it
_NO_SAMPLING = ("index", "prompt", "name")


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

    def repeated_names(self) -> list[str]:
        """Return what is wrong with names that two lines have."""
        return repeated_names(self, self._locations)

    @property
    def locations(self) -> Sequence[str]:  # noqa: D102  # among the attributes
        return self._locations if any(p.keys() - {"prompt", "seed"} for p in self) else ()


class PromptDataset:
    """Prompts with a seed each, checked when the dataset is made.

    An item is a dictionary: `index`, `prompt`, `seed` and every sampling field that was given; and
    `name`, what its file is called, where it is not called by its prompt alone. It is a map-style
    dataset: `DataLoader(..., batch_size=None)` takes it.

    Args:
        prompts: Each a text, or a mapping with `prompt` and `SamplingParams` fields that override,
            and with `name`, what its file is called.
        seed: Seed of the first prompt; the n-th gets `seed + n`.
        seeds: Videos of each prompt: from its own seed on, one for each of that many seeds. Item
            `n * seeds + k` is the n-th prompt with its own seed plus k, `name` ends in the seed.
        **sampling: `SamplingParams` fields for all prompts; None means the family's default.

    Raises:
        TypeError: If a prompt is neither text nor a mapping, or `prompts` is no list of them.
        ValueError: If a prompt is empty, a field is unknown, a value is impossible, or two have one
            name.

    Attributes:
        seeds: Videos of each prompt.
        locations: Of each prompt of a file, where it stands; else none.
    """

    def __init__(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        seed: int = 1024,
        *,
        seeds: int = 1,
        **sampling: Any,
    ) -> None:
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise TypeError(
                f"prompts must be a list of prompts, got one {type(prompts).__name__}. "
                "Pass it in a list: [prompt]."
            )
        self.locations = prompts.locations if isinstance(prompts, LocatedPrompts) else ()
        base = SamplingParams.from_mapping({**sampling, "seed": seed})
        self.seeds = check_seeds(seeds)
        lines = [_item(number, prompt, base) for number, prompt in enumerate(prompts)]
        places = self.locations or [f"prompts[{number}]" for number in range(len(lines))]
        if repeated := repeated_names(lines, places):
            raise (PromptFileError(repeated) if self.locations else ValueError(repeated[0]))
        self._items = [item for line in lines for item in _each_seed(line, seeds)]

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
        name: What its file is called, where it is not called by its prompt alone.
    """

    def __init__(
        self, prompt: str, params: ResolvedSampling, index: int = 0, *, name: str | None = None
    ) -> None:
        super().__init__(index=index, prompt=prompt, **params.given())
        if name is not None:
            self["name"] = name
        self.params = params


def params_of(item: Mapping[str, Any]) -> SamplingParams:
    """Return the sampling parameters among an item, those of a resolved one as resolved."""
    if isinstance(item, ResolvedPrompt):
        return item.params
    sampling = {name: value for name, value in item.items() if name not in _NO_SAMPLING}
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


def check_seeds(seeds: object) -> int:
    """Return how many videos of each prompt are asked for, if that is a number of videos.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is less than 1 or more than `MOST_SEEDS`.
    """
    check_count("seeds", seeds, low=1)
    assert isinstance(seeds, int)
    if seeds > MOST_SEEDS:
        raise ValueError(
            f"seeds must be {MOST_SEEDS} or less, got {seeds}. It is how many videos of each "
            f"prompt are made; for a seed of your own pass seed={seeds}."
        )
    return seeds


def check_name(name: object, *, where: str = "name") -> str:
    """Return the name of a video's file, without its suffix, if every file system takes it.

    Raises:
        TypeError: If it is not text.
        ValueError: If it is empty, far too long, or no plain name.
    """
    wanted = f"{where} must be the name of a file"
    if not isinstance(name, str):
        raise TypeError(f"{wanted}, got {name!r}. Write it as text, such as 'shot_1'.")
    if not name.strip():
        raise ValueError(f"{wanted}, got {name!r}. Write one such as 'shot_1', or leave it out.")
    size_bytes = len(name.encode(errors="surrogatepass"))
    if size_bytes > _MAX_NAME_BYTES:
        raise ValueError(
            f"{wanted} of {_MAX_NAME_BYTES} bytes or less, got {size_bytes}. Shorten it."
        )
    plain = safe_stem(name.removesuffix(".mp4").removesuffix(".png"))
    if plain != name:
        raise ValueError(
            f"{wanted} of letters, digits, hyphens and single underscores between them, got "
            f"{name!r}. Write it without a folder and a suffix, such as {plain!r}."
        )
    return name


def repeated_names(prompts: Sequence[Mapping[str, Any]], places: Sequence[str]) -> list[str]:
    """Return what is wrong with names that two prompts have, as a file system may read names.

    Args:
        prompts: Of them, those with `name` count.
        places: Where each stands.
    """
    first: dict[str, str] = {}
    wrong = []
    for prompt, place in zip(prompts, places, strict=True):
        if (name := prompt.get("name")) is None:
            continue
        before = first.setdefault(name.casefold(), place)
        if before is not place:
            wrong.append(f"{place}: the name {name!r} is that of {before}. Give each its own.")
    return wrong


def _item(number: int, prompt: str | Mapping[str, Any], base: SamplingParams) -> dict[str, Any]:
    where = f"prompts[{number}]"
    overrides = dict(prompt) if isinstance(prompt, Mapping) else {"prompt": prompt}
    check_known(overrides, ("prompt", "name", *SamplingParams.__dataclass_fields__), where)
    text = check_prompt(overrides.pop("prompt", ""), where=where)
    name = overrides.pop("name", None)
    named = {} if name is None else {"name": check_name(name, where=f"{where}: name")}
    params = base.merge(**{"seed": base.seed + number, **overrides})
    return {"index": number, "prompt": text, **named, **params.given()}


def _each_seed(line: dict[str, Any], seeds: int) -> Iterator[dict[str, Any]]:
    """Give a prompt's items, one for each seed; of one seed, the prompt's as it is."""
    if seeds == 1:
        yield line
        return
    stem = line.get("name")
    for k in range(seeds):
        # What a seed may be is asked again: it grows.
        seed = SamplingParams(seed=line["seed"] + k).seed
        name = f"{stem or safe_stem(line['prompt'], max_bytes=_MAX_NAME_BYTES)}_{seed}"
        yield {**line, "index": line["index"] * seeds + k, "seed": seed, "name": name}
