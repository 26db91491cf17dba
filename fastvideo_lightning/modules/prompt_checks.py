"""What a model does not see of a prompt: words that it has no token for, and what is too long."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from fastvideo_lightning.modules.pipelines import Pipeline
from fastvideo_lightning.modules.signature import CallSignature

_MOST_SHOWN, _LONGEST_SHOWN, _MOST_KNOWN = 10, 40, 200
_log = logging.getLogger(__name__)
_told: WeakKeyDictionary[Pipeline, set[str]] = WeakKeyDictionary()
_defaults: WeakKeyDictionary[Pipeline, int | None] = WeakKeyDictionary()


def unknown_words(pipeline: Pipeline, prompts: Iterable[str]) -> list[str]:
    """Return the words of the prompts that no tokenizer of the pipeline knows, each once."""
    tokenizers = list(_tokenizers(pipeline))
    found = dict.fromkeys(
        word
        for prompt in prompts
        if tokenizers and all(_has_unknown(each, prompt) for each in tokenizers)
        for word in prompt.split()
        if all(_has_unknown(each, word) for each in tokenizers)
    )
    return list(found)


def warn_of_unread(pipeline: Pipeline, items: Iterable[Mapping[str, Any]]) -> None:
    """Log what the model will not see of prompts, each word and each prompt once for a pipeline.

    Args:
        pipeline: Of the model.
        items: Each with `prompt`, and with `max_sequence_length` where that was given.
    """
    told, items = _told.setdefault(pipeline, set()), list(items)
    words = [w for w in unknown_words(pipeline, [i["prompt"] for i in items]) if w not in told]
    if words:
        told.update(words)
        _log.warning("%s", describe_unknown(words, known_words(pipeline)))
    cut = [item for item in items if item["prompt"] not in told and _is_cut(pipeline, item)]
    if cut:
        told.update(item["prompt"] for item in cut)
        _log.warning("%s", describe_cut(pipeline, cut))


def unread(pipeline: Pipeline, item: Mapping[str, Any]) -> list[str]:
    """Return what to say of a prompt that the model does not see all of; nothing where it does."""
    words = unknown_words(pipeline, [item["prompt"]])
    said = [describe_unknown(words, known_words(pipeline))] if words else []
    return [*said, describe_cut(pipeline, [item])] if _is_cut(pipeline, item) else said


def describe_cut(pipeline: Pipeline, items: Sequence[Mapping[str, Any]]) -> str:
    """Return what to say of prompts that are longer than what the model reads."""
    first = items[0]
    more = f" and {len(items) - 1} more are" if len(items) > 1 else " is"
    return (
        f"{_shortened(first['prompt'])!r}{more} longer than the {_limit(pipeline, first)} tokens "
        "that the model reads: the rest will not show. Shorten "
        f"{'them' if more.endswith('are') else 'it'}."
    )


def known_words(pipeline: Pipeline) -> list[str]:
    """Return the words that the model knows, where they are few enough to be told."""
    known: set[str] = set()
    for tokenizer in _tokenizers(pipeline):
        if len(tokenizer) > _MOST_KNOWN:
            return []
        known |= tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    return sorted(word for word in known if word.isalnum())


def describe_unknown(words: Sequence[str], known: Sequence[str] = ()) -> str:
    """Return what to say of words that a model does not know; the first of many.

    Args:
        words: What it does not know.
        known: What it knows, where that can be told.
    """
    shown = ", ".join(repr(_shortened(word)) for word in words[:_MOST_SHOWN])
    more = f" and {len(words) - _MOST_SHOWN} more" if len(words) > _MOST_SHOWN else ""
    other = f"It knows {', '.join(known)}." if known else "Use other words."
    return f"The model does not know {shown}{more}: what is shown will not follow. {other}"


def _shortened(word: str) -> str:
    return word if len(word) <= _LONGEST_SHOWN else f"{word[: _LONGEST_SHOWN - 3]}..."


def _is_cut(pipeline: Pipeline, item: Mapping[str, Any]) -> bool:
    """Whether every tokenizer finds more tokens than are read, beside those that it adds itself."""
    tokenizers = list(_tokenizers(pipeline))
    limit = _limit(pipeline, item) if tokenizers else None
    if limit is None:
        return False
    return all(len(_tokens(each, item["prompt"])) > limit for each in tokenizers)


def _limit(pipeline: Pipeline, item: Mapping[str, Any]) -> int | None:
    """Return how many tokens are read, or None where the pipeline's call does not say."""
    given = item.get("max_sequence_length")
    if given is not None:
        return int(given)
    if pipeline not in _defaults:
        default = CallSignature(pipeline).default_of("max_sequence_length")
        _defaults[pipeline] = default if isinstance(default, int) else None
    return _defaults[pipeline]


def _tokenizers(pipeline: Pipeline) -> Iterator[Any]:
    from transformers import PreTrainedTokenizerBase

    for component in pipeline.components.values():
        if isinstance(component, PreTrainedTokenizerBase):
            yield component


def _has_unknown(tokenizer: Any, text: str) -> bool:
    if tokenizer.unk_token_id is None:
        return False
    return tokenizer.unk_token_id in _tokens(tokenizer, text)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
