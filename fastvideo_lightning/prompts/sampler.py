"""Who makes which video, where several processes share the prompts of a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

# What a prompt may have of its own without calling the denoiser another number of times.
_FREE = {"index", "prompt", "name", "negative_prompt", "seed", "fps"}
_FREE |= {"image_path", "last_image_path"}


@dataclass(frozen=True)
class Replica:
    """A process's place among those that share the prompts.

    Processes that compute one video together, by context parallel, are one replica.

    Attributes:
        index: Which replica it is of `count`.
        count: Replicas, each with a share of the prompts.
        is_first: Whether this process speaks for its replica: it keeps and writes the videos.
    """

    index: int = 0
    count: int = 1
    is_first: bool = True


@dataclass(frozen=True)
class Turn:
    """One video that a process takes part in.

    Attributes:
        batch: The prompt.
        is_repeat: Another process keeps this video: here it is made because collectives need all.
    """

    batch: Any
    is_repeat: bool


def deal(prompts: Any, replica: Replica) -> Iterator[Turn]:
    """Give replica r of n the items r, r + n, ...; the shares may differ by one.

    Of a map-style dataset only these are asked for.
    """
    if hasattr(prompts, "__getitem__"):
        mine: Iterator[Any] = (
            prompts[i] for i in range(replica.index, len(prompts), replica.count)
        )
    else:
        mine = islice(prompts, replica.index, None, replica.count)
    return (Turn(item, not replica.is_first) for item in mine)


def deal_in_rounds(prompts: Any, replica: Replica) -> Iterator[Turn]:
    """Give every replica equally many items, those of one round alike in what they compute.

    Where weights are gathered over all processes, all must call the denoisers equally often. A
    round therefore holds prompts of the same steps, guidance and size, and where there are too few,
    the round's first is made again by those that would have none.
    """
    is_map = hasattr(prompts, "__getitem__")
    rounds: dict[str, list[Any]] = {}
    for item in (prompts[i] for i in range(len(prompts))) if is_map else prompts:
        waiting = rounds.setdefault(_kind(item), [])
        waiting.append(item)
        if len(waiting) == replica.count:
            yield _turn(waiting, replica)
            waiting.clear()
    for waiting in rounds.values():
        if waiting:
            yield _turn(waiting, replica)


def _turn(members: Sequence[Any], replica: Replica) -> Turn:
    if replica.index < len(members):
        return Turn(members[replica.index], not replica.is_first)
    return Turn(members[0], is_repeat=True)


def _kind(item: Any) -> str:
    if not isinstance(item, Mapping):
        return ""
    return repr(sorted((name, None if name in _FREE else str(item[name])) for name in item))
